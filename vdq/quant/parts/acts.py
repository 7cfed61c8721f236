"""Activation quantizers: static ones, whose graphs hold no reduction of an activation, and those that measure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import BRANCHES, StepClock
from vdq.quant.affine import QParams, code_range, fake_quantize, qparams_from_range, tensor_range
from vdq.quant.codebook import Codebook
from vdq.quant.parts.base import ActFakeQuant, ActQuantizer, ExactBuffers, InputTransform, Runtime, UniformGrids
from vdq.quant.transform import video_rows
from vdq.quant.video_scales import absmax_scale, block_max, fake_quantize_within


@dataclass(frozen=True, eq=False, kw_only=True)
class StaticActs(UniformGrids, ActQuantizer):
    """One uniform grid a tensor and time range. scale, zero_point: fp32 [Ka].

    step_bits: long [N], the bits of every step, or None for `bits`, which is the most of them. Raises ValueError when
    it is not.
    """

    kind = "static"
    label = "scales and zero points of activations"
    by_step = ("steps", "step_bits")

    symmetric: bool = False
    step_bits: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_bits is not None and not self.step_bits.is_meta and int(self.step_bits.max()) != self.bits:
            raise ValueError(f"bits={self.bits} must be the largest of step_bits, {int(self.step_bits.max())}")

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        lower, upper, scale = self.grid().index_select(0, step)[0].unbind(-1)
        return rounded_within(x / scale, lower, upper, scale)

    def module(self, runtime: Runtime, smoothing: InputTransform | None) -> nn.Module:
        return StaticFakeQuant(self, runtime.clock, smoothing)

    def grid(self) -> Tensor:
        """What every step rounds with, fp32 [N, ..., 3]: codes are kept less the zero point z, so these are first - z,
        last - z and the scale.
        """
        scale, zero_point = self.of_steps("scale"), self.of_steps("zero_point")
        first, last = (bound.view(-1, *[1] * (scale.dim() - 1)) for bound in self.code_bounds())
        return torch.stack([first - zero_point, last - zero_point, scale], -1)

    def code_bounds(self) -> tuple[Tensor, Tensor]:
        """First and last code of every step, whole numbers, each [N] fp32."""
        bits = self.bits_of_steps or [self.bits] * len(self.steps)
        bounds = [code_range(each, self.symmetric) for each in bits]
        return torch.tensor(bounds, dtype=torch.float32, device=self.steps.device).unbind(1)

    def step_qparams(self) -> QParams:
        """Scales and zero points of every step, each [N, ...] fp32."""
        return QParams(self.of_steps("scale"), self.of_steps("zero_point"))

    def variants(self) -> Tensor:
        found = super().variants()
        if self.step_bits is None:
            return found
        return torch.stack([found, self.step_bits], 1).unique(dim=0, return_inverse=True)[1]

    @property
    def num_ranges(self) -> int:
        return len(self.scale) // (len(BRANCHES) if self.per_branch else 1)

    @property
    def bits_of_steps(self) -> list[int] | None:
        return None if self.step_bits is None else self.step_bits.tolist()

    @property
    def mean_bits(self) -> float:
        return mean(self.bits_of_steps or [self.bits])

    @property
    def features(self) -> frozenset[str]:
        return super().features | ({"step_bits"} if self.step_bits is not None else set())

    @property
    def line(self) -> str:
        most = "at most " if self.step_bits is not None else ""
        calls = " for each branch of guidance" if self.per_branch else ""
        return f"static: {most}{self.bits} bits {self._grain}, {self.num_ranges} range(s) of steps{calls}"

    @property
    def _grain(self) -> str:
        return "per tensor"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenGroupActs(StaticActs):
    """A grid for each group of token rows: scale, zero_point [Ka, G].

    group: long [R]; row r of a video's R token rows, in the order in which the layer gets them, belongs to group[r].
    Raises ValueError for groups that are not 0..G-1, and UserError when the rows are not whole videos.
    """

    kind = "token_groups"

    group: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = self.scale.shape[-1] if self.scale.dim() == 2 else 0
        if not (self.group.is_meta or 0 <= int(self.group.min()) <= int(self.group.max()) < groups):
            raise ValueError(f"group has values outside 0..{groups - 1}, the groups of scale")

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        return self.of_videos(x, self.grid().index_select(0, step)[0], self.group)

    @staticmethod
    def of_videos(x: Tensor, grid: Tensor, group: Tensor) -> Tensor:
        """x' with the grids [G, 3] of a step."""
        lower, upper, scale = grid.index_select(0, group)[..., None].unbind(1)  # [R, 1]
        return rounded_within(video_rows(x, len(group)) / scale, lower, upper, scale).reshape(x.shape)

    def module(self, runtime: Runtime, smoothing: InputTransform | None) -> nn.Module:
        return TokenGroupFakeQuant(self, runtime.clock, smoothing)

    @property
    def num_groups(self) -> int:
        return self.scale.shape[1]

    def label_of(self, name: str) -> str:
        return "groups of tokens" if name == "group" else super().label_of(name)

    @property
    def _grain(self) -> str:
        return f"for each of {self.num_groups} groups of tokens"


@dataclass(frozen=True, eq=False, kw_only=True)
class CodebookActs(ActQuantizer):
    """Levels that need not be uniform, the same at all steps: levels fp32 [L], edges fp32 [L - 1]."""

    kind = "codebook"
    label = "codebooks of activations"
    size_field = "scales"

    levels: Tensor
    edges: Tensor

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        return Codebook(self.levels, self.edges)(x)

    @property
    def line(self) -> str:
        return f"static: {self.bits} bits, {len(self.levels)} levels that are not uniform"


@dataclass(frozen=True, eq=False, kw_only=True)
class PerTokenActs(ActQuantizer):
    """Grids of the range of every token at run time (the ViDiT-Q baseline)."""

    kind = "per_token"
    static = False

    symmetric: bool = False

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        form = {"bits": self.bits, "symmetric": self.symmetric}
        return fake_quantize(x, qparams_from_range(*tensor_range(x, self.kind), **form), **form)

    @property
    def line(self) -> str:
        return f"dynamic: {self.bits} bits, {self.kind}, measured at run time"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenSharedActs(PerTokenActs):
    """One range for a token index over all rows of the batch, as upstream's ViDiT-Q: x' must be [B, n, in]."""

    kind = "token_shared"
    needs_rows = True

    def module(self, runtime: Runtime, smoothing: InputTransform | None) -> nn.Module:
        return TokenSharedFakeQuant(self, runtime, smoothing)


@dataclass(frozen=True, eq=False, kw_only=True)
class PerVideoActs(ActQuantizer):
    """Symmetric, with a scale for every video and `block` consecutive channels, measured at run time
    (vdq.quant.video_scales).

    high_bits, delta: of videos that have high_bits at some steps and `bits` at the others, as vdq.quant.bit_switch
    decides while sampling; None for `bits` at all steps.
    """

    kind = "per_video"
    static = False
    needs_rows = True

    block: int = 1
    high_bits: int | None = None
    delta: float | None = None

    def module(self, runtime: Runtime, smoothing: InputTransform | None) -> nn.Module:
        return PerVideoFakeQuant(self, runtime, smoothing)

    @property
    def mean_bits(self) -> float | None:
        return self.bits if self.high_bits is None else None

    @property
    def switching(self) -> tuple[int, int, float] | None:
        return None if self.high_bits is None else (self.bits, self.high_bits, self.delta)

    @property
    def features(self) -> frozenset[str]:
        return super().features | ({"bit_switch"} if self.high_bits is not None else set())

    @property
    def line(self) -> str:
        bits = self.bits if self.high_bits is None else f"{self.bits}, {self.high_bits}"
        return f"dynamic: {bits} bits, a scale for every video and {self.block} channel(s), measured at run time"


def rounded_within(ratio: Tensor, lower: Tensor, upper: Tensor, scale: Tensor) -> Tensor:
    """clamp(round(ratio)) * scale, in the memory of `ratio`."""
    # In place, one bound at a time: fresh memory and clamp with two tensor bounds are several times slower on CPUs.
    return ratio.round_().clamp_min_(lower).clamp_max_(upper).mul_(scale)


class StaticFakeQuant(ExactBuffers):
    """Smoothing and scale are one division by `divisor` [N, in] = s * D; `grid` [N, 3] is StaticActs.grid."""

    exact = ("divisor", "grid")
    divisor: Tensor
    grid: Tensor

    def __init__(self, part: StaticActs, clock: StepClock, smoothing: InputTransform | None) -> None:
        super().__init__()
        self.clock = clock
        scale = part.of_steps("scale")[:, None]
        self.register_buffer("divisor", scale if smoothing is None else scale * smoothing.of_steps("factors"))
        self.register_buffer("grid", part.grid())

    def forward(self, x: Tensor) -> Tensor:
        step = self.clock.index
        lower, upper, scale = self.grid.index_select(0, step)[0].unbind()
        return rounded_within(x / self.divisor.index_select(0, step)[0], lower, upper, scale)


class TokenGroupFakeQuant(ActFakeQuant, ExactBuffers):
    """Runs TokenGroupActs with the grids of all steps at hand, [N, G, 3]."""

    exact = ("grid",)
    grid: Tensor

    def __init__(self, part: TokenGroupActs, clock: StepClock, smoothing: InputTransform | None) -> None:
        super().__init__(part, clock, smoothing)
        self.register_buffer("grid", part.grid())

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid.index_select(0, self.clock.index)[0]
        return self.part.of_videos(self.smoothed(x), grid, self.part.group)


class TokenSharedFakeQuant(ActFakeQuant):
    def __init__(self, part: TokenSharedActs, runtime: Runtime, smoothing: InputTransform | None) -> None:
        super().__init__(part, runtime.clock, smoothing)
        self.rows = runtime.rows

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.rows.unfold(self.smoothed(x)), self.clock.index).reshape(x.shape)


class PerVideoFakeQuant(ActFakeQuant):
    """Dequantized only: a scale that varies along the contraction is no factor of an integer sum. The switch says how
    many bits a row has; without one all have the same.
    """

    def __init__(self, part: PerVideoActs, runtime: Runtime, smoothing: InputTransform | None) -> None:
        super().__init__(part, runtime.clock, smoothing)
        self.rows, self.switch = runtime.rows, runtime.switch

    def forward(self, x: Tensor) -> Tensor:
        smoothed = self.smoothed(x)
        absmax = self.rows.absmax(smoothed)  # [rows, C]
        bits = self.part.bits if self.switch is None else self.switch.bits(len(absmax)).to(x.device)[:, None]
        scale = absmax_scale(block_max(absmax, self.part.block), bits)
        return fake_quantize_within(smoothed, self.rows.spread(scale, smoothed))

    @property
    def variant(self) -> object:
        """Another value when the bits of the videos are others."""
        return self.switch and self.switch.variant
