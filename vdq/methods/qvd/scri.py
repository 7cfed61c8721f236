"""SCRI, QVD's treatment of channels that lie apart: a shift of every channel, and a factor for those that are too wide.

Confirmed [C for a port of QVD]: the centre of a channel's range is subtracted and given back by the bias, and a factor
for channels above a threshold is a switch that is off. Inferred [I]: statistics of all steps where the port takes the
first step's, the error that chooses the threshold, the formula of coverage (tags as in vdq.methods).
"""

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.quant.affine import QParams, fake_quantize, qparams_from_range, quantize, tensor_range
from vdq.quant.time_ranges import TimeRanges

SHIFTS = ("mid", "mean")
THRESHOLDS = 101


def channel_ranges(lo: Tensor, hi: Tensor, ranges: TimeRanges) -> tuple[Tensor, Tensor]:
    """Range of every channel over the steps of each time range: two [N, C] -> two [K, C]."""
    return (
        torch.stack([part.amin(0) for part in ranges.split(lo)]),
        torch.stack([part.amax(0) for part in ranges.split(hi)]),
    )


def channel_shift(lo: Tensor, hi: Tensor, ranges: TimeRanges, mode: str = "mid") -> Tensor:
    """The centre z of every channel in each time range, fp32 [K, C] of ranges [N, C] of the steps.

    "mid": of the range over all steps, (max + min) / 2. "mean": the mean over the steps of their centres; the port's
    mean of the values themselves needs them, and statistics have extremes only [I]. Raises UserError for another mode.
    """
    if mode not in SHIFTS:
        raise UserError(f"shift={mode} must be null or one of {', '.join(SHIFTS)}")
    if mode == "mean":
        return torch.stack([part.mean(0) for part in ranges.split((lo + hi) / 2)])
    lo, hi = channel_ranges(lo, hi, ranges)
    return (lo + hi) / 2


def threshold_factors(peak: Tensor, threshold: Tensor) -> Tensor:
    """s = max(1, peak / threshold) of max |X| of every channel, [C]: only channels above the threshold are shrunk."""
    return (peak / threshold).clamp(min=1)


def best_factors(weight: Tensor, lo: Tensor, hi: Tensor, **formats: int | bool) -> Tensor:
    """The factors s [C] of the threshold with the smallest `expected_error`, which takes `formats`: weight [out, C],
    channel ranges [K, C] of the shifted input. The largest and the mean channel's maximum and 99 values between them
    are tried; the largest gives s = 1, so that the error is never above that without factors.
    """
    peak = torch.maximum(hi, -lo).amax(0)
    if not bool(peak.any()):
        return torch.ones_like(peak)
    thresholds = peak.mean() + (peak.max() - peak.mean()) * torch.linspace(1, 0, THRESHOLDS, device=peak.device)
    tried = (threshold_factors(peak, threshold) for threshold in thresholds)
    return min(tried, key=lambda s: expected_error(weight, lo, hi, s, **formats))


def expected_error(
    weight: Tensor,
    lo: Tensor,
    hi: Tensor,
    factors: Tensor,
    *,
    weight_bits: int,
    act_bits: int,
    symmetric_acts: bool = True,
) -> float:
    """Squared error of a layer's outputs of one token, the mean over time ranges, from channel ranges alone [I].

    The port measures the error on inputs, of which statistics keep the extremes only. Here rounding of the input is
    white noise of variance D^2 / 12 that the quantized weight multiplies, and the rounding error of the weight, which
    is known, multiplies channels that are independent and spread evenly over their ranges. weight [out, C], ranges
    [K, C], factors s [C]; the input is X / s per tensor, the weight W s per output channel and symmetric.
    """
    lo, hi = lo / factors, hi / factors
    act = qparams_from_range(lo.amin(-1), hi.amax(-1), bits=act_bits, symmetric=symmetric_acts)
    scaled = weight.float() * factors
    grid = qparams_from_range(*tensor_range(scaled, "per_channel"), bits=weight_bits, symmetric=True)
    rounded = fake_quantize(scaled, grid, bits=weight_bits, symmetric=True)
    power = ((lo.square() + lo * hi + hi.square()) / 3).mean(0)
    of_input = act.scale.double().square().mean() / 12 * rounded.double().square().sum()
    of_weight = ((rounded - scaled).double().square().sum(0) * power).sum()
    return float(of_input + of_weight)


def coverage(lo: Tensor, hi: Tensor, act: QParams, *, bits: int, symmetric: bool) -> float:
    """Mean over channels and time ranges of the levels that a channel's range spans / 2^bits, 1 is the best [I].

    lo, hi [K, C] are channel ranges, act the per-tensor qparams [K] of the time ranges.
    """
    grid = QParams(*(values[:, None] for values in act))
    first, last = (quantize(bound, grid, bits=bits, symmetric=symmetric) for bound in (lo, hi))
    return float((last - first + 1).mean() / 2**bits)
