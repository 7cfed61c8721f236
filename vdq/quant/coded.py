"""Parameters of a layer whose weight is known by its codes only, as an artefact stores it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vdq.quant.affine import code_range
from vdq.quant.bit_packing import pack_bits, unpack_bits
from vdq.quant.state import LinearParams


@dataclass(frozen=True, eq=False, kw_only=True)
class CodedParams(LinearParams):
    """LinearParams that answer with stored codes, so that backends build the layer that the original weight gives.

    codes: uint8 [Kw, bytes], those of every weight range (vdq.quant.bit_packing). They stay on the host, often
    memory-mapped, and are only read. Methods that take the weight [out, in] use its shape and device alone: `stand_in`
    takes its place.
    """

    codes: Tensor

    def weight_codes(self, weight: Tensor, range_: int) -> Tensor:
        packed = self.codes[range_].to(weight.device)
        first, _ = code_range(self.weight_bits, self.symmetric_weights)
        return (unpack_bits(packed, self.weight_bits, weight.numel()) + first).float().view(weight.shape)

    def to(self, device: torch.device | str) -> "CodedParams":
        tensors = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return CodedParams.from_tensors(tensors, self.scalars() | {"codes": self.codes})

    def __deepcopy__(self, memo: dict) -> "CodedParams":
        return self


def packed_codes(params: LinearParams, weight: Tensor) -> Tensor:
    """The `codes` of CodedParams, on the CPU: one range at a time is worked on."""
    first, _ = code_range(params.weight_bits, params.symmetric_weights)
    ranges = range(params.num_weight_ranges)
    return torch.stack([pack_bits(params.weight_codes(weight, r) - first, params.weight_bits).cpu() for r in ranges])


def stand_in(out_features: int, in_features: int) -> Tensor:
    """Zeros fp32 [out, in] that take no memory, in place of a weight of which only the codes are left."""
    return torch.zeros(()).expand(out_features, in_features)
