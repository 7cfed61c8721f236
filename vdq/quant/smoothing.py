"""SmoothQuant's per-channel factors, aggregated over time ranges (the paper's Eq. 2)."""

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.quant.time_ranges import TimeRanges

MOMENTUM = 0.95
# Beyond these a channel counts as dead: s times a scale, or X / s, must stay a normal fp32 number.
MIN_FACTOR, MAX_FACTOR = 1e-20, 1e20
EMA_ORDERS = ("ascending_t", "descending_t")


def aggregate_absmax(
    absmax: Tensor, ranges: TimeRanges, *, momentum: float = MOMENTUM, order: str = "ascending_t"
) -> Tensor:
    """Running average of the activation maxima inside each time range: [num_steps, C] -> [num_ranges, C] fp32.

    A <- a for the first step of a range, then A <- momentum * A + (1 - momentum) * a. "ascending_t" (upstream) starts
    at the last sampling step, "descending_t" at the first. Raises UserError for another order or a momentum outside
    0..1.

    A deviation from upstream: there every batch of eight rows updates A, two random ones of each of ten steps, which
    leaves some rows out and lets the batch size decide how much a step counts. Here a is of all rows of all prompts,
    and A is updated once a step, at every step.
    """
    check_ema(momentum, order)
    return torch.stack([_ema(absmax[_ordered(ranges.steps(r), order)], momentum) for r in range(ranges.num_ranges)])


def check_ema(momentum: float, order: str) -> None:
    """Raises UserError unless momentum is in 0..1 and order is known."""
    _check_unit("momentum", momentum)
    if order not in EMA_ORDERS:
        raise UserError(f"ema_order={order} must be one of {', '.join(EMA_ORDERS)}")


def check_alpha(alpha: float) -> float:
    """Return alpha, or raise UserError outside 0..1."""
    return _check_unit("alpha", alpha)


def smoothing_factors(act_absmax: Tensor, weight_absmax: Tensor, *, alpha: float) -> Tensor:
    """s = A^alpha / w^(1 - alpha) for X / s and W * s, fp32 of act_absmax's shape (the paper's Eq. 2).

    act_absmax [K, C] and weight_absmax [C] = max_o |W[o, j]|, both per input channel. Where the quotient is not a
    number in 1e-20..1e20 (a channel that is zero in every activation or weight) s is 1 and the layer stays exact;
    upstream puts A = 1e-5 for A = 0 and gets infinity for w = 0. Raises UserError for alpha outside 0..1.
    """
    check_alpha(alpha)
    s = act_absmax.float().pow(alpha) / weight_absmax.float().pow(1 - alpha)
    return torch.where((s >= MIN_FACTOR) & (s <= MAX_FACTOR), s, torch.ones_like(s))


def smoothed_range(lo: Tensor, hi: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor]:
    """Range of the whole tensor X / s at every step: two fp32 [num_steps].

    lo, hi [num_steps, C] are the ranges of X per step and channel, s [num_steps, C] is the step's or None. Exact:
    division by a positive s preserves order, so the minimum of X / s is the minimum over channels of lo / s, bit for
    bit.
    """
    if s is not None:
        lo, hi = lo / s, hi / s
    return lo.amin(-1), hi.amax(-1)


def range_over_steps(lo: Tensor, hi: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Join the steps of each range: two [N] -> two [K], rows long [N] on the CPU the range 0..K-1 of every step."""
    joined, rows = lo.new_empty(int(rows.max()) + 1), rows.to(lo.device)
    return (
        joined.scatter_reduce(0, rows, lo, "amin", include_self=False),
        joined.scatter_reduce(0, rows, hi, "amax", include_self=False),
    )


def _check_unit(name: str, value: float) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name}={value} must be a number in 0..1")
    return value


def _ordered(steps: range, order: str) -> list[int]:
    return list(reversed(steps)) if order == "ascending_t" else list(steps)


def _ema(values: Tensor, momentum: float) -> Tensor:
    average = values[0].float()
    for value in values[1:]:
        average = momentum * average + (1 - momentum) * value.float()
    return average
