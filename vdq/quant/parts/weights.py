"""Weight quantizers: the integer codes of W' [out, in] and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vdq.quant.affine import QParams, dequantize, quantize
from vdq.quant.bit_packing import packed_bytes
from vdq.quant.parts.base import UniformGrids, WeightQuantizer
from vdq.quant.weight_codes import unpack_codes

CODES_LABEL = "integer weights"


@dataclass(frozen=True, eq=False, kw_only=True)
class AffineWeights(UniformGrids, WeightQuantizer):
    """Uniform grids per output channel; the codes follow from rounding W'. scale, zero_point: fp32 [Kw, out, 1]."""

    kind = "affine"
    label = "scales and zero points of weights"

    @property
    def num_sets(self) -> int:
        return len(self.scale)

    def qparams(self, set_: int) -> QParams:
        """Scale and zero point of one set, each [out, 1] fp32."""
        return QParams(self.scale[set_], self.zero_point[set_])

    def codes_of(self, weight: Tensor, set_: int, transform: Callable[[Tensor], Tensor]) -> Tensor:
        return quantize(transform(weight), self.qparams(set_), bits=self.bits, symmetric=self.symmetric)

    def dequantized(self, codes: Tensor, set_: int) -> Tensor:
        return dequantize(codes, self.qparams(set_))

    def stored(self, codes: Tensor) -> StoredWeights:
        grids = {"scale": self.scale, "zero_point": self.zero_point, "steps": self.steps}
        return StoredWeights(bits=self.bits, symmetric=self.symmetric, codes=codes, **grids)

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.tables, (self.num_sets, out_features, 1))

    @property
    def line(self) -> str:
        form = "symmetric " if self.symmetric else ""
        return f"{self.bits} bits per output channel, {form}{self.num_sets} set(s) over the steps"


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredWeights(AffineWeights):
    """Uniform grids with the codes themselves, which follow from no rounding, or whose weight is no longer there.

    codes: uint8 [Kw, bytes], packed (vdq.quant.bit_packing). They stay on the host, may be memory-mapped, and are only
    read; of the layer's weight its shape, dtype and device are then all that is used.
    """

    kind = "stored_codes"
    on_host = ("codes",)

    codes: Tensor

    def codes_of(self, weight: Tensor, set_: int, transform: Callable[[Tensor], Tensor]) -> Tensor:
        return unpack_codes(self.codes[set_], weight, bits=self.bits, symmetric=self.symmetric)

    def packed(self, weight: Tensor, transform: Callable[[Tensor, int], Tensor]) -> Tensor:
        return self.codes

    def label_of(self, name: str) -> str:
        return CODES_LABEL if name == "codes" else super().label_of(name)

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        size = packed_bytes(out_features * in_features, self.bits)
        return super().shapes(out_features, in_features) | {"codes": (self.num_sets, size)}

    def variants(self) -> Tensor:
        first: list[int] = []  # the first set of equal grids and codes, of every set
        for k in range(self.num_sets):
            first.append(next((j for j in range(k) if first[j] == j and self._same(j, k)), k))
        return torch.tensor(first, device=self.steps.device)[self.steps]

    def _same(self, one: int, other: int) -> bool:
        return all(torch.equal(t[one], t[other]) for t in (self.scale, self.zero_point, self.codes))
