"""Where the layers of a backend have the weight sets of their time ranges: as the user says, or by size."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from vdq.errors import UserError
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.set_bytes import SetBytes, summary

AUTO, KEEP, REQUANTIZE = "auto", "keep", "requantize"


class SetChoice:
    """wanted: one of `allowed`, or "auto": by size, "keep" all sets or "requantize" (vdq.quant.set_bytes). bits: of a
    number of a set that is kept. Raises UserError for another value.
    """

    def __init__(self, wanted: str, allowed: Iterable[str], bits: int) -> None:
        if wanted not in (AUTO, *allowed):
            raise UserError(f"backend.weight_sets={wanted} must be one of {', '.join((AUTO, *allowed))}")
        self.wanted, self.bits = wanted, bits

    def __call__(self, weight: Tensor, quant: LayerQuant) -> str:
        """Of a layer with this weight [out, in]."""
        if self.wanted != AUTO:
            return self.wanted
        return REQUANTIZE if quant.weight.num_sets > 1 and self._bytes(weight, quant).from_weight else KEEP

    def summary(self, layers: Iterable[tuple[Tensor, LayerQuant]]) -> str:
        """What was chosen by size, in words; empty where nothing was to choose."""
        if self.wanted != AUTO:
            return ""
        return summary([(self._bytes(*layer), self(*layer) == REQUANTIZE) for layer in layers])

    def _bytes(self, weight: Tensor, quant: LayerQuant) -> SetBytes:
        return SetBytes.of(weight, quant.weight.num_sets, self.bits)
