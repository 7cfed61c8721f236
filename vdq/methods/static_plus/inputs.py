"""What static_plus decides and computes of a layer's input before it looks at a weight: q, k and v share it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vdq.methods.static_plus.gptq import Feedback, feedback, gram
from vdq.methods.static_plus.token_groups import TokenGroups, group_sizes
from vdq.quant.rotation import hadamard
from vdq.quant.smoothing import smoothed_range
from vdq.quant.stats import LayerStats
from vdq.quant.transform import in_half


class LayerInput:
    """What layers of one input share. kind of shift: "mean", "mid" or None; rotation: block size, 0 for none; damping:
    of GPTQ.

    constant: whether the input is the same at every step, as text is; then one step stands for all, here and in the
    tables. shift: fp16 [Ka, in], or None, Ka one or the number of steps. stats: of X - shift.
    """

    def __init__(
        self, stats: LayerStats, kind: str | None, *, rotation: int, tokens: TokenGroups | None, damping: float
    ) -> None:
        self.constant = _constant(stats)
        stats = _of_one_step(stats) if self.constant else stats
        self.shift = _shift(stats, kind)
        self.stats = stats if self.shift is None else _shifted(stats, self.shift.float())
        self.rotation, self.tokens, self.damping = rotation, tokens, damping

    @property
    def num_steps(self) -> int:
        """Steps that are told apart."""
        return len(self.stats.rows)

    def seen(self, s: Tensor | None) -> SeenInput:
        """The input as the quantizer gets it: s [1, in], or None for no smoothing, of which there is one for all
        weights.
        """
        return self._unsmoothed if s is None else self._seen(s)

    @cached_property
    def _unsmoothed(self) -> SeenInput:
        return self._seen(None)

    def _seen(self, s: Tensor | None) -> SeenInput:
        rows = self.stats.recorded.inputs.float()
        rows = rows if s is None else rows / s[0]
        rows = hadamard(rows, self.rotation) if self.rotation else rows
        sizes, of_rows = _token_sizes(rows, self.stats, self.tokens)
        relative = rows / of_rows
        if self.rotation or self.tokens is not None:  # of which only recorded rows know the range
            ranges = relative.flatten(1).amin(1), relative.flatten(1).amax(1)
        else:
            ranges = smoothed_range(self.stats.min, self.stats.max, None if s is None else s[0])
        return SeenInput(rows, relative, sizes, of_rows, ranges, self.damping)


@dataclass(frozen=True, eq=False)
class SeenInput:
    """Recorded rows x' fp32 [N, n, in]; relative: divided by the sizes of their groups, of_rows [N, n, 1] or ones [N,
    1, 1], so that all groups have one grid; sizes: of the groups, [N, G] or None; ranges: of relative, two [N].
    """

    rows: Tensor
    relative: Tensor
    sizes: Tensor | None
    of_rows: Tensor
    ranges: tuple[Tensor, Tensor]
    damping: float

    @cached_property
    def feedback(self) -> Feedback:
        """GPTQ's feedback over the inputs of all steps."""
        return feedback(gram(self.rows), damping=self.damping)


def _constant(stats: LayerStats) -> bool:
    bounds = () if stats.min.is_meta else (stats.min, stats.max)
    return bool(bounds) and all(torch.equal(bound, bound[:1].expand_as(bound)) for bound in bounds)


def _of_one_step(stats: LayerStats) -> LayerStats:
    recorded = stats.recorded._replace(inputs=stats.recorded.inputs[:1], places=stats.recorded.places[:1])
    return LayerStats(stats.min[:1], stats.max[:1], stats.abs_sum[:1], stats.rows[:1], recorded)


def _shift(stats: LayerStats, kind: str | None) -> Tensor | None:
    if kind is None:
        return None
    middle = (stats.min + stats.max) / 2 if kind == "mid" else stats.recorded.inputs.float().mean(1)
    return in_half(middle, "shift")


def _shifted(stats: LayerStats, shift: Tensor) -> LayerStats:
    """Statistics of X - shift; the row maxima, which are not known, become the maxima of all rows."""
    lo, hi = stats.min - shift, stats.max - shift
    recorded = stats.recorded._replace(inputs=stats.recorded.inputs.float() - shift[:, None])
    return replace(
        stats, min=lo, max=hi, abs_sum=torch.maximum(-lo, hi).double() * stats.rows[:, None], recorded=recorded
    )


def _token_sizes(rows: Tensor, stats: LayerStats, tokens: TokenGroups | None) -> tuple[Tensor | None, Tensor]:
    """Of the groups [N, G], or None without; of the recorded rows [N, n, 1], or [N, 1, 1] ones without groups."""
    if tokens is None:
        return None, rows.new_ones(len(rows), 1, 1)
    groups = tokens.of(stats.recorded.places)
    sizes = group_sizes(rows, groups, tokens.count)
    return sizes, sizes.gather(1, groups)[..., None]
