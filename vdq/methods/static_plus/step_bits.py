"""Activation bits of every denoising step, decided before sampling, under a budget of their mean.

delta-Guided Bit Switching (DVD-Quant) decides while sampling; here the same rule, or the measured error of every step,
is evaluated once on the calibration prompts and frozen.
"""

import torch
from torch import Tensor

from vdq.errors import UserError

MIN_BITS, MAX_BITS = 2, 8  # of codes that integer kernels multiply


def spread_bits(step_error: Tensor, mean_bits: int, *, low: int = MIN_BITS, high: int = MAX_BITS) -> Tensor:
    """Bits long [N] with mean `mean_bits` that minimize sum_t e_t 4^-b_t, low <= b_t <= high: step_error [N] is e_t.

    A bit more divides the squared rounding error by four, so the bit that gains most is
    given first, again and again; for a sum of convex terms that is the optimum. With mean_bits >= high every step has
    mean_bits. Raises UserError for a mean below low.
    """
    _check_mean(mean_bits, low)
    count, error = len(step_error), step_error.double()
    if mean_bits >= high:
        return torch.full((count,), mean_bits)
    bits = torch.full((count,), low)
    for _ in range((mean_bits - low) * count):
        gain = torch.where(bits < high, error * 4.0**-bits, -1.0)
        bits[gain.argmax()] += 1
    return bits


def frozen_switch(step_change: Tensor, mean_bits: int, *, high: int = MAX_BITS) -> Tensor:
    """Bits long [N] of delta-GBS on the mean change d_t of the calibration prompts, step_change [N]: mean_bits - 1 or
    `high`, with the smallest delta for which their mean is at most mean_bits. With mean_bits >= high every step has
    mean_bits. Raises UserError for a mean below 3.
    """
    _check_mean(mean_bits, MIN_BITS + 1)
    if mean_bits >= high:
        return torch.full((len(step_change),), mean_bits)
    sums = torch.cumsum(step_change.double(), 0)
    candidates = (sums[:, None] - torch.cat([sums.new_zeros(1), sums])[None]).flatten()  # sums that D can reach
    for delta in [*candidates[candidates > 0].unique().tolist(), float("inf")]:
        bits = switched_bits(step_change, low=mean_bits - 1, high=high, delta=delta)
        if bits.double().mean() <= mean_bits:
            return bits
    raise UserError(f"act_bits={mean_bits} is too small for a first step of {high} bits in {len(step_change)} steps")


def switched_bits(step_change: Tensor, *, low: int, high: int, delta: float) -> Tensor:
    """delta-GBS (vdq.quant.bit_switch) for known changes: long [N]; the first step is high, a later one when
    the changes before it, since the last high step, have reached delta.
    """
    bits, total = [high], 0.0
    for change in step_change.double().tolist()[:-1]:  # d_t is known after step t and decides step t + 1
        total += change
        bits.append(high if total >= delta else low)
        total = 0.0 if total >= delta else total
    return torch.tensor(bits)


def _check_mean(mean_bits: int, least: int) -> None:
    if mean_bits < least:
        raise UserError(f"act_bits={mean_bits} must be at least {least} when steps differ in bits")
