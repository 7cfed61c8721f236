"""What happens to a layer's input before it is quantized: x' = rotate((x - shift) / s) and W' = rotate(W s).

x' W'^T + shift W^T = x W^T: the first term is quantized, the second is known before sampling and added as a correction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from vdq.diffusion.clock import StepClock
from vdq.quant.parts.base import Cost, InputTransform, OutputTransform
from vdq.quant.rotation import check_block, hadamard
from vdq.quant.transform import rotate_output


@dataclass(frozen=True, eq=False, kw_only=True)
class Shift(InputTransform):
    """x - values. values: [Ka, in], fp32 or fp16."""

    kind = "shift"
    label = "shifts and corrections"
    tables = ("values",)
    of_input = True
    changes_weight = False

    values: Tensor

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        return x - self.at("values", step).float()

    def weight(self, weight: Tensor, set_: int) -> Tensor:
        return weight

    def restored_weight(self, weight: Tensor, set_: int) -> Tensor:
        return weight

    def extremes(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        shift = self.of_steps("values").float().to(lo.device)
        return lo - shift, hi - shift

    def rotated(self, block: int) -> Shift:
        return replace(self, values=hadamard(self.values.float(), block))

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        return {"values": (len(self.values), in_features)}

    @property
    def line(self) -> str:
        return f"shift of every channel, {len(self.values)} row(s) over the steps"


@dataclass(frozen=True, eq=False, kw_only=True)
class Smoothing(InputTransform):
    """X / s and W s, SmoothQuant's factors (paper Eq. 2). factors: fp32 [Kw, in], `steps` are those of the weight."""

    kind = "smoothing"
    label = "smoothing factors"
    tables = ("factors",)

    factors: Tensor

    @property
    def num_sets(self) -> int:
        return len(self.factors)

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        return x / self.at("factors", step)

    def weight(self, weight: Tensor, set_: int) -> Tensor:
        return weight * self.factors[set_]

    def restored_weight(self, weight: Tensor, set_: int) -> Tensor:
        return weight / self.factors[set_]

    def extremes(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Exact: division by a positive s preserves order."""
        s = self.of_steps("factors").to(lo.device)
        return lo / s, hi / s

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        return {"factors": (len(self.factors), in_features)}

    @property
    def line(self) -> str:
        return f"smoothing, {len(self.factors)} set(s) over the steps"


@dataclass(frozen=True, eq=False, kw_only=True)
class Rotation(InputTransform):
    """x H and W H of `block` consecutive channels each (vdq.quant.rotation.hadamard)."""

    kind = "rotation"

    block: int

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        return hadamard(x, self.block)

    def weight(self, weight: Tensor, set_: int) -> Tensor:
        return hadamard(weight, self.block)

    def restored_weight(self, weight: Tensor, set_: int) -> Tensor:
        return hadamard(weight, self.block)

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        check_block(self.block, in_features, "rotation")
        return {}

    @property
    def line(self) -> str:
        return f"rotation of {self.block} channels"

    def cost(self, rows: int, out_features: int, in_features: int) -> Cost:
        return Cost(rotation_adds=rows * in_features * math.log2(self.block))


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldedRotation(Rotation):
    """A rotation that the layer before has done already: x arrives rotated (RotatedOutput)."""

    kind = "folded_rotation"

    def module(self, clock: StepClock) -> None:
        return None

    def rotated(self, block: int) -> FoldedRotation:
        return self

    @property
    def line(self) -> str:
        return f"input rotated by the layer before, {self.block} channels"

    def cost(self, rows: int, out_features: int, in_features: int) -> Cost:
        return Cost()


@dataclass(frozen=True, eq=False, kw_only=True)
class RotatedOutput(OutputTransform):
    """Hands the output over rotated, `block` channels each, which is not undone here: the layer behind expects it."""

    kind = "rotated_output"

    block: int

    def weight(self, weight: Tensor) -> Tensor:
        return rotate_output(weight, self.block)

    def restored_weight(self, weight: Tensor) -> Tensor:
        return rotate_output(weight, self.block)

    def bias(self, bias: Tensor) -> Tensor:
        return hadamard(bias.detach().float(), self.block).to(bias.dtype)

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        check_block(self.block, out_features, "rotated_output")
        return {}

    @property
    def line(self) -> str:
        return f"output rotated for the layer behind, {self.block} channels"
