"""Weights that are known by their codes, as parameters and artefacts store them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from vdq.quant.affine import code_range
from vdq.quant.bit_packing import pack_bits, unpack_bits


def pack_codes(ranges: Iterable[Tensor], *, bits: int, symmetric: bool = False) -> Tensor:
    """Weight codes of every range, integers [out, in] each, one range at a time -> uint8 [Kw, bytes] on the CPU."""
    first, _ = code_range(bits, symmetric)
    return torch.stack([pack_bits(codes - first, bits).cpu() for codes in ranges])


def unpack_codes(packed: Tensor, like: Tensor, *, bits: int, symmetric: bool = False) -> Tensor:
    """Weight codes of one range, as integers in fp32 of the shape and on the device of `like`: uint8 [bytes]."""
    first, _ = code_range(bits, symmetric)
    return (unpack_bits(packed.to(like.device), bits, like.numel()) + first).float().view(like.shape)


def stand_in(out_features: int, in_features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros [out, in] that take no memory, in place of a weight of which only the codes are left."""
    return torch.zeros((), dtype=dtype).expand(out_features, in_features)
