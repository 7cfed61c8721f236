"""HTDQ, QVD's quantization of temporal features: those that depend on the step alone, so that a schedule has them all.

Confirmed [C]: temporal features are skewed, and HTDQ keeps quantized ones of different steps distinguishable. The
base-2 logarithm and its mixture with a uniform grid are those of a port of QVD [C for the port]; the other families,
the allocation of codes and both formulas of discriminability are inferred [I] (tags as in vdq.methods).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.quant.affine import check_bits, dequantize, qparams_from_range
from vdq.quant.codebook import Codebook

UNIFORM, LOG2, MIXED, COMPANDED = FAMILIES = ("uniform", "log2", "mixed", "companded")
CLAMP_RATIOS = [k / 20 for k in range(20, 0, -1)]
EDGES = [k / 100 for k in range(1, 100)]
POWERS = [1.25, 1.5, 2.0, 2.5, 3.0, 4.0]
MAX_EXPONENT = 60  # of log2: smaller levels are zero to anything that is added to the largest


class Candidate(NamedTuple):
    """A quantizer of a family. parameter: the share of the range that is kept (uniform), the edge over the largest
    magnitude (mixed), the power p (companded); log2 has none.
    """

    family: str
    parameter: float | None
    codebook: Codebook


@dataclass(frozen=True, eq=False)
class Trial:
    """A candidate and what it does to the features of a schedule, all by formulas of this module. error:
    `step_difference_error`. score: `discriminability`. frozen: `frozen_channels`. relative_l2: of the features.
    """

    candidate: Candidate
    error: float
    score: float
    frozen: float
    relative_l2: float


def choose(features: Tensor, bits: int) -> list[Trial]:
    """The best quantizer of each family and the best of all first: the smallest step-difference error, of equal ones
    the smallest L2 error [I]. features [N, C] of N steps in their order. Raises UserError for bits outside 2..16 and
    features that are not finite.
    """
    check_bits(bits, "temporal_bits")
    if not bool(torch.isfinite(features).all()):
        raise UserError("temporal features have NaN or infinite values")
    best: dict[str, Trial] = {}
    for candidate in candidates(features, bits):
        trial = evaluate(features, candidate)
        if candidate.family not in best or _rank(trial) < _rank(best[candidate.family]):
            best[candidate.family] = trial
    return sorted(best.values(), key=_rank)


def candidates(features: Tensor, bits: int) -> Iterator[Candidate]:
    """Static quantizers with at most 2^bits levels, one for all steps and channels."""
    lo, hi = features.min().float(), features.max().float()
    peak = torch.maximum(hi, -lo).clamp(min=torch.finfo(torch.float32).tiny)
    for ratio in CLAMP_RATIOS:
        yield Candidate(UNIFORM, ratio, uniform(ratio * lo, ratio * hi, bits))
    yield Candidate(LOG2, None, log2(peak, bits))
    for edge in EDGES:
        yield Candidate(MIXED, edge, mixed(peak, edge, bits))
    for power in POWERS:
        yield Candidate(COMPANDED, power, companded(lo, hi, power, bits))


def uniform(lo: Tensor, hi: Tensor, bits: int) -> Codebook:
    """The asymmetric min-max grid of [lo, hi] (vdq.quant.affine), as a table; values outside take its ends."""
    levels = dequantize(torch.arange(2**bits, device=lo.device), qparams_from_range(lo, hi, bits=bits))
    return Codebook(levels, (levels[1:] + levels[:-1]) / 2)


def log2(peak: Tensor, bits: int) -> Codebook:
    """0 and +-peak 2^-k, nearest in the exponent, as the port of QVD; one of the bits is the sign [I]."""
    magnitudes = _powers(peak, 2 ** (bits - 1) - 1)
    return _signed(magnitudes, magnitudes * 2**-0.5)


def mixed(peak: Tensor, edge: float, bits: int) -> Codebook:
    """Up to edge * peak the levels of log2, above it a uniform grid up to peak; half of the codes each, as the port of
    QVD, with the sign in both halves [I]. edge in 0..1, exclusive.
    """
    count = 2 ** (bits - 2)
    small = _powers(edge * peak, count - 1)
    width = (1 - edge) * peak / count
    large = edge * peak + width * torch.arange(1, count + 1, device=peak.device)
    return _signed(torch.cat([small, large]), torch.cat([small * 2**-0.5, large - width / 2]))


def companded(lo: Tensor, hi: Tensor, power: float, bits: int) -> Codebook:
    """A uniform grid of sign(x) |x|^(1/power): small values get more of the levels [I]."""
    table = uniform(_signed_power(lo, 1 / power), _signed_power(hi, 1 / power), bits)
    return Codebook(*(_signed_power(values, power) for values in table))


def evaluate(features: Tensor, candidate: Candidate) -> Trial:
    """What a candidate does to features [N, C]."""
    quantized = candidate.codebook(features)
    norm = float(features.double().norm())
    return Trial(
        candidate,
        error=step_difference_error(features, quantized),
        score=discriminability(features, quantized),
        frozen=frozen_channels(quantized),
        relative_l2=float((quantized - features).double().norm()) / norm if norm else 0.0,
    )


def step_difference_error(features: Tensor, quantized: Tensor) -> float:
    """Mean over neighbouring steps of |(q_i - q_i+1) - (e_i - e_i+1)| / |e_i - e_i+1|, 0 is exact: both [N, C] [I].

    Steps of equal features do not count; without any other, as with one step, it is 0.
    """
    differences, ours = (values.double().diff(dim=0) for values in (features, quantized))
    return _mean_ratio((ours - differences).norm(dim=1), differences.norm(dim=1), empty=0.0)


def discriminability(features: Tensor, quantized: Tensor) -> float:
    """TDScore: mean over all pairs of steps i < j of |q_i - q_j| / |e_i - e_j|, 1 is exact: both [N, C]. QVD's own
    formula is not known; this one has equal weights for all pairs [I]. Noise raises it too, so nothing is chosen by it.

    Pairs of equal features do not count; without any other it is 1.
    """
    distances, ours = (torch.pdist(values.double()) for values in (features, quantized))
    return _mean_ratio(ours, distances, empty=1.0)


def frozen_channels(quantized: Tensor) -> float:
    """Share of the channels with one level at all steps: [N, C]."""
    return float((quantized == quantized[0]).all(0).float().mean())


def _rank(trial: Trial) -> tuple[float, float]:
    return trial.error, trial.relative_l2


def _powers(peak: Tensor, count: int) -> Tensor:
    """peak 2^-k, ascending, of the `count` smallest k."""
    exponents = torch.arange(min(count, MAX_EXPONENT + 1), device=peak.device).flip(0)
    return peak * torch.exp2(-exponents.float())


def _signed(magnitudes: Tensor, lower: Tensor) -> Codebook:
    """0 and +-magnitudes; a value belongs to a magnitude from `lower` on. Both ascending, [M]."""
    zero = magnitudes.new_zeros(1)
    return Codebook(torch.cat([-magnitudes.flip(0), zero, magnitudes]), torch.cat([-lower.flip(0), lower]))


def _signed_power(x: Tensor, power: float) -> Tensor:
    return x.sign() * x.abs().pow(power)


def _mean_ratio(numerator: Tensor, denominator: Tensor, *, empty: float) -> float:
    counted = denominator > 0
    return float((numerator[counted] / denominator[counted]).mean()) if bool(counted.any()) else empty
