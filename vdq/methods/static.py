"""Static post-training quantization: CW + TW, TSW, ASQ and TSQ of the paper are settings of one method."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from vdq.diffusion.clock import BRANCHES
from vdq.methods.base import ABSMAX, RANGE, SmoothedMethod, smoothed_weights
from vdq.quant.affine import qparams_from_range
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.parts import ActQuantizer, StaticActs
from vdq.quant.smoothing import MOMENTUM, range_over_steps, smoothed_range
from vdq.quant.stats import LayerStats
from vdq.quant.time_ranges import TimeRanges


class StaticMethod(SmoothedMethod):
    """Per-output-channel weights and per-tensor activations whose qparams are fixed before sampling.

    weight_bits, act_bits: 2..16. num_time_ranges: K of 1..N, or "per_step"; number of smoothing factor sets, and of
    activation qparams unless `act_time_ranges` says otherwise. alpha: activation exponent of Eq. 2 in 0..1, None for no
    smoothing (the weights then have one set whatever K). momentum, ema_order: aggregation of activation maxima over the
    steps of a range. per_branch: activation qparams of each branch of guidance, for families that take two calls of the
    denoiser a step; weights and smoothing serve both. Raises UserError for a value outside these.

    Paper's names: CW + TW is K = 1 without alpha, TSW "per_step" without alpha, ASQ K = 1, TSQ + K TR any K, TSQ +
    TSW "per_step".
    """

    neutral: ClassVar = SmoothedMethod.neutral | {"per_branch": False}

    def __init__(
        self,
        *,
        weight_bits: int = 8,
        act_bits: int = 8,
        num_time_ranges: int | str = 1,
        act_time_ranges: int | str | None = None,
        alpha: float | None = None,
        momentum: float = MOMENTUM,
        ema_order: str = "ascending_t",
        symmetric_weights: bool = False,
        symmetric_acts: bool = False,
        per_branch: bool = False,
    ) -> None:
        super().__init__(
            weight_bits=weight_bits,
            act_bits=act_bits,
            num_time_ranges=num_time_ranges,
            alpha=alpha,
            momentum=momentum,
            ema_order=ema_order,
        )
        self.act_time_ranges = act_time_ranges
        self.symmetric_weights, self.symmetric_acts = symmetric_weights, symmetric_acts
        self.per_branch = per_branch

    def needs(self, fqn: str) -> frozenset[str]:
        return frozenset({RANGE} if self.alpha is None else {RANGE, ABSMAX})

    def check(self, num_steps: int) -> None:
        super().check(num_steps)
        self._act_ranges(num_steps)

    def parts(self) -> frozenset[str]:
        act = self.act(torch.zeros(1), torch.ones(1), steps=torch.zeros(1, dtype=torch.long))
        return self.smoothing_parts() | {"affine"} | replace(act, per_branch=self.per_branch).features

    def without_effect(self, num_steps: int) -> dict[str, str]:
        alone = self.alpha is None and self.act_time_ranges is not None
        own = {"num_time_ranges": "alpha=null smooths nothing, and activations have act_time_ranges"} if alone else {}
        return super().without_effect(num_steps) | own

    def layer(self, weight: Tensor, stats: LayerStats | None, num_steps: int) -> LayerQuant:
        smoothing, ranges = self.smoothing(weight, stats, num_steps), self._act_ranges(num_steps)
        rows = ranges.index  # of activation qparams, of every step
        if self.per_branch:
            stats, rows = stats.calls, _of_calls(rows)
            smoothing = smoothing and smoothing.picked(lambda steps: steps.repeat_interleave(len(BRANCHES)))
        form = {"bits": self.weight_bits, "symmetric": self.symmetric_weights}
        inputs, weights = smoothed_weights(weight, smoothing, len(rows), **form)
        lo, hi = smoothed_range(stats.min, stats.max, smoothing and smoothing.of_steps("factors"))
        act = self.act(*range_over_steps(lo, hi, rows), steps=rows.to(weight.device))
        return LayerQuant(inputs=inputs, weight=weights, act=replace(act, per_branch=self.per_branch))

    def act(self, lo: Tensor, hi: Tensor, *, steps: Tensor) -> ActQuantizer:
        """The activation quantizer for ranges [lo, hi] of the smoothed input, two [K]; steps: long
        [N], the range of every step. A method with another quantizer overrides this.
        """
        scale, zero_point = qparams_from_range(lo, hi, bits=self.act_bits, symmetric=self.symmetric_acts)
        form = {"bits": self.act_bits, "symmetric": self.symmetric_acts}
        return StaticActs(scale=scale, zero_point=zero_point, steps=steps, **form)

    def _act_ranges(self, num_steps: int) -> TimeRanges:
        if self.act_time_ranges is None:
            return TimeRanges(num_steps, self.num_time_ranges)
        return TimeRanges(num_steps, self.act_time_ranges, name="act_time_ranges")


def _of_calls(rows: Tensor) -> Tensor:
    """Rows of all calls, each branch of a range with one of its own: long [N] of the steps -> [2 N]."""
    return (len(BRANCHES) * rows[:, None] + torch.arange(len(BRANCHES))).flatten()
