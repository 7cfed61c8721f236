"""delta-Guided Bit Switching of DVD-Quant (arXiv 2505.18663): high activation bits where the output changes fast.

Second-hand (tags as in vdq.methods): the criterion, eq. 11, and delta = 0.09 are [S]; edge rules are marked [I].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vdq.diffusion.clock import StepClock
from vdq.diffusion.observer import StepObserver
from vdq.errors import UserError

DELTA = 0.09
TINY = 1e-30


def check_delta(delta: float) -> float:
    """Return `delta`, or raise UserError when it is negative or not a number."""
    if math.isnan(delta) or delta < 0:
        raise UserError(f"delta={delta} must be a number of at least 0")
    return delta


class BitSwitch(StepObserver):
    """Chooses for every video of a batch whether a step runs with `low` or with `high` activation bits.

    After step t, d_t = |F_t - F_{t-1}|_1 / |F_{t-1}|_1 of the guided estimate F is added to the video's sum D (eq. 11
    [S]). A step before which D has reached delta is high and sets D to 0, the others are low: d_t itself is not known
    yet when step t runs [I]. Step 0, before which there is no output, is high [I]. That F is the guided estimate and
    not one of its halves is [I] too. Every video has a D of its own, so that its bits do not depend on its batch [I].
    With delta 0 all steps are high, with an infinite one all but the first are low; with any delta above 0 so is step
    1, where a figure of the paper shows about four high steps at the start [C] and no text says why. Steps in `kept`
    are not quantized: they set D to 0 as high ones do.
    """

    def __init__(
        self, clock: StepClock, *, low: int, high: int, delta: float = DELTA, kept: Iterable[int] = ()
    ) -> None:
        super().__init__()
        self.clock, self.low_bits, self.high_bits, self.delta = clock, low, high, check_delta(delta)
        self.kept = frozenset(kept)
        self._start()

    def observe(self, step: int, estimate: Tensor) -> None:
        """estimate [n, ...]: what decides the bits of step + 1."""
        if step == 0:
            self._start()
        bits = self.bits(len(estimate))
        change = torch.zeros(len(estimate), dtype=torch.float64, device=estimate.device)
        if self._previous is not None:
            change = _row_sums(estimate - self._previous) / _row_sums(self._previous).clamp(min=TINY)
        exact = step in self.kept
        self._sum = torch.where((bits.to(change.device) == self.high_bits) | exact, 0.0, self._sum) + change
        self._history.append(([None] * len(bits) if exact else bits.tolist(), change.tolist()))
        self._previous = estimate.clone()
        self._next = torch.where(self._sum >= self.delta, self.high_bits, self.low_bits)

    def bits(self, rows: int) -> Tensor:
        """Bits of the clock's step, long [rows]: rows of a call of the denoiser, which are k times the n videos of the
        batch one after another, so that both halves of a guided call have the same. Raises ValueError when the outputs
        of the steps before are not known, or `rows` is no multiple of n.
        """
        self._check_told()
        if self.clock.step == 0:
            return torch.full((rows,), self.high_bits, device=self.clock.index.device)
        if rows % len(self._next):
            raise ValueError(f"bit switching got {rows} rows, must be a multiple of the {len(self._next)} videos")
        return self._next.repeat(rows // len(self._next))

    @property
    def variant(self) -> tuple[int, ...]:
        """Another value when the bits of any video are others."""
        self._check_told()
        return (self.high_bits,) if self.clock.step == 0 else tuple(self._next.tolist())

    def records(self) -> list[dict[str, Any]]:
        """Of each video of the batch, lists over the steps: `act_bits`, None at kept steps, and `change`, d_t, 0 at the
        first step.
        """
        videos = zip(*(zip(*step, strict=True) for step in self._history), strict=True)
        return [{"act_bits": [bits for bits, _ in video], "change": [d for _, d in video]} for video in videos]

    def extra_repr(self) -> str:
        return f"low={self.low_bits}, high={self.high_bits}, delta={self.delta}"

    def _start(self) -> None:
        self._history: list[tuple[list[int | None], list[float]]] = []
        self._previous: Tensor | None = None
        self._sum: Tensor | float = 0.0
        self._next: Tensor | None = None

    def _check_told(self) -> None:
        if (step := self.clock.step) not in (0, len(self._history)):
            raise ValueError(
                f"bit switching at step {step} must be told the estimates of all steps before it, in order"
            )


def _row_sums(x: Tensor) -> Tensor:
    """Sum of |x| over everything but dim 0, fp64."""
    return x.double().abs().flatten(1).sum(1)
