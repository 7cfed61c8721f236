"""What stands beside the product of integers, in floating point."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from vdq.diffusion.clock import StepClock
from vdq.quant.parts.base import Branch, Cost, PartModule


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank(Branch):
    """A product of low rank: the part of a weight that few directions hold. down [r, in] and up [out, r], fp16.

    x' W'^T = x' (up down)^T + x' R^T, of which only the second product is quantized, weight and input (after SVDQuant,
    Li et al. 2025, arXiv 2411.05007, whose branch takes what smoothing moved into the weights).
    """

    kind = "low_rank"
    label = "low-rank branches"
    size_field = "branches"
    holds_weight = True

    down: Tensor
    up: Tensor

    def __call__(self, x: Tensor, step: Tensor | None = None) -> Tensor:
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))

    def module(self, clock: StepClock) -> nn.Module:
        return PartModule(replace(self, down=self.down.float(), up=self.up.float()), clock)

    @property
    def weight(self) -> Tensor:
        return self.up.float() @ self.down.float()

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        rank = len(self.down)
        return {"down": (rank, in_features), "up": (out_features, rank)}

    @property
    def line(self) -> str:
        return f"branch of rank {len(self.down)} in half precision"

    def cost(self, rows: int, out_features: int, in_features: int) -> Cost:
        return Cost(float_macs=rows * len(self.down) * (out_features + in_features))


@dataclass(frozen=True, eq=False, kw_only=True)
class Correction(Branch):
    """A bias of the step. values: [Ka, out], fp32 or fp16."""

    kind = "correction"
    label = "shifts and corrections"
    tables = ("values",)
    reads_input = False

    values: Tensor

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        return self.at("values", step).float()

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        return {"values": (len(self.values), out_features)}

    @property
    def line(self) -> str:
        return f"bias of the step, {len(self.values)} row(s) over the steps"
