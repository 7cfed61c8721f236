"""Whether codes of all weight sets are held, or the weight that each set is made of when its steps come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vdq.quant.layer_quant import LayerQuant
from vdq.quant.parts import StoredWeights

SMALL = 4e6  # codes of all sets of a layer, which are always held: no layer of the testbed has more
MEGABYTE = 1e6


@dataclass(frozen=True)
class SetBytes:
    """What the weight sets of a layer, or of several together, take in bytes: `codes` those of all sets, `weight` the
    original weight in its own precision, 0 where that is held anyway. layers, sets: how many; small: codes are held
    whatever they take.
    """

    layers: int
    sets: int
    codes: float
    weight: float
    small: bool

    @classmethod
    def of(cls, weight: Tensor, sets: int, bits: float, *, held: bool = False) -> SetBytes:
        """Of one layer whose codes take `bits` each: weight [out, in]; held: the weight is there for another reason."""
        numbers = sets * weight.numel()
        return cls(1, sets, numbers * bits / 8, 0 if held else weight.numel() * weight.element_size(), numbers <= SMALL)

    @classmethod
    def stored(cls, weight: Tensor, quant: LayerQuant, *, held: bool = False) -> SetBytes | None:
        """Of a layer in a file, with codes packed at their bits. None where codes do not follow from the weight."""
        if isinstance(quant.weight, StoredWeights):
            return None
        return cls.of(weight, quant.weight.num_sets, quant.weight.bits, held=held)

    @property
    def from_weight(self) -> bool:
        """Whether to hold the weight and make each set of it: the one place where that is decided."""
        return not self.small and self.codes > self.weight

    def plus(self, other: SetBytes) -> SetBytes:
        numbers = self.layers + other.layers, max(self.sets, other.sets)
        return SetBytes(*numbers, self.codes + other.codes, self.weight + other.weight, self.small and other.small)

    def line(self, from_weight: bool) -> str:
        """What is held of these layers, and what the other choice would take."""
        sets = f"{self.sets} set{'s' if self.sets > 1 else ''}"
        codes = f"{self.codes / MEGABYTE:.1f} MB"
        weight = f"{self.weight / MEGABYTE:.1f} MB" if self.weight else "which is there anyway"
        if from_weight:
            return f"the original weight, {weight}, and codes when a step needs them: {sets} would take {codes}"
        return f"codes of {sets}, {codes} (the original weight: {weight})"


def summary(found: Sequence[tuple[SetBytes, bool]]) -> str:
    """Of layers with what was chosen for each; those of one set, where both choices hold one, are left out."""
    lines = []
    for from_weight in (True, False):
        chosen = [each for each, made in found if made == from_weight and each.sets > 1]
        if chosen:
            together = chosen[0]
            for each in chosen[1:]:
                together = together.plus(each)
            lines.append(f"{together.layers} layers hold {together.line(from_weight)}")
    return "; ".join(lines)
