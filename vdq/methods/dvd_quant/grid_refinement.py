"""Bounded-init Grid Refinement of DVD-Quant (arXiv 2505.18663): weight grids fitted to the weights alone.

What is known of it is second-hand (tags as in vdq.methods): the objective, the alternating updates and the
narrowing initial bounds are [S]; what was left open or printed wrongly is decided here and marked [I].
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.quant.affine import EPS, QParams, code_range, fake_quantize, qparams_from_range, tensor_range

NUM_BOUNDS = 20
TOLERANCE = 1e-4
MAX_UPDATES = 100
CHUNK = 2**22  # fp64 numbers in memory at a time


class CodeSums(NamedTuple):
    """Sums over a row under each of I grids, all fp64 [rows, I]: of the codes, their squares, and codes * weights."""

    total: Tensor
    squares: Tensor
    products: Tensor


def refine_grid(
    weight: Tensor,
    *,
    bits: int,
    num_bounds: int = NUM_BOUNDS,
    tolerance: float = TOLERANCE,
    max_updates: int = MAX_UPDATES,
) -> QParams:
    """Asymmetric qparams [out, 1] that lower every row's squared error |W - What|^2: weight [out, in] (eq. 3 [S]).

    Starts from the min-max grids of the row clamped to [min + i d, max - i d], d = (max - min) / num_bounds [S; of each
    row I], for every 0 <= i < num_bounds / 2, so that the bounds cannot cross and plain min-max is among them [I]. From
    each of them: scale by least squares, zero point by means [S; of the row I] and rounded, new codes (eq. 4-6 [S]);
    until an update lowers the error by less than the share `tolerance` (relative: [I]), `max_updates` at most [I]. The
    best of everything seen is kept per row [I], so no row is worse than with its min-max grid.

    num_bounds and tolerance are published nowhere: 20 and 1e-4 are ours [I]. A weight on the meta device gets its
    min-max grid. Raises UserError for num_bounds or max_updates below 1, a tolerance outside 0..1, bits outside 2..16.
    """
    check_refinement(num_bounds, tolerance, max_updates)
    weight = weight.detach().float()
    plain = qparams_from_range(*tensor_range(weight, "per_channel"), bits=bits)
    if weight.is_meta:
        return plain
    binned = _bins_are_cheaper(weight.shape[1], bits)
    numbers = (num_bounds + 1) // 2 * (2**bits if binned else weight.shape[1]) + 4 * weight.shape[1]  # of a row
    options = {"bits": bits, "num_bounds": num_bounds, "tolerance": tolerance, "max_updates": max_updates}
    summing = _binned if binned else _elementwise
    parts = [_refined(rows, summing, **options) for rows in weight.split(max(1, CHUNK // numbers))]
    refined = QParams(*(torch.cat(values)[:, None].float() for values in zip(*parts, strict=True)))
    # Sums in fp64 chose them; what counts is the error of the fp32 grid.
    return _where(_error(weight, refined, bits) < _error(weight, plain, bits), refined, plain)


def check_refinement(num_bounds: int, tolerance: float, max_updates: int = MAX_UPDATES) -> None:
    """Raises UserError for options that `refine_grid` does not take."""
    for name, value in (("num_bounds", num_bounds), ("max_updates", max_updates)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value} must be an integer of at least 1")
    if not 0 <= tolerance <= 1:
        raise UserError(f"tolerance={tolerance} must be a number in 0..1")


def _refined(
    weight: Tensor,
    summing: Callable[[Tensor, int], Callable[[QParams], CodeSums]],
    *,
    bits: int,
    num_bounds: int,
    tolerance: float,
    max_updates: int,
) -> QParams:
    """The best grid of every row as fp64 [rows], of weight [rows, in]."""
    last = code_range(bits)[1]
    sums = summing(weight, bits)
    lo, hi = tensor_range(weight, "per_channel")
    inward = torch.arange((num_bounds + 1) // 2, device=weight.device) / num_bounds * (hi - lo)  # [rows, I]
    scale, zero_point = (x.double() for x in qparams_from_range(lo + inward, hi - inward, bits=bits))
    weight = weight.double()
    total, energy = weight.sum(1, keepdim=True), weight.square().sum(1, keepdim=True)
    count = weight.shape[1]
    best, best_error = QParams(scale, zero_point), torch.full_like(scale, torch.inf)
    error, moving = best_error, torch.ones_like(scale, dtype=torch.bool)
    for _ in range(max_updates + 1):
        codes = sums(QParams(scale, zero_point))
        products = codes.products - zero_point * total  # <q - z, W>
        squares = codes.squares - 2 * zero_point * codes.total + count * zero_point**2  # <q - z, q - z>
        before, error = error, energy - 2 * scale * products + scale**2 * squares
        best = QParams(
            *(torch.where(error < best_error, *both) for both in zip((scale, zero_point), best, strict=True))
        )
        best_error = torch.minimum(error, best_error)
        moving = moving & (error < (1 - tolerance) * before)
        if not bool(moving.any()):
            break
        fitted = torch.where((squares > 0) & (products > 0), products / squares, scale).clamp(min=EPS)
        scale = torch.where(moving, fitted, scale)
        shift = torch.round((codes.total / count - total / count / scale).clamp(0, last))
        zero_point = torch.where(moving, shift, zero_point)
    chosen = best_error.argmin(1, keepdim=True)
    return QParams(*(x.gather(1, chosen)[:, 0] for x in best))


def _where(condition: Tensor, first: QParams, second: QParams) -> QParams:
    return QParams(*(torch.where(condition, *both) for both in zip(first, second, strict=True)))


def _error(weight: Tensor, qparams: QParams, bits: int) -> Tensor:
    """Squared error of every row, fp64 [out, 1]."""
    return (weight - fake_quantize(weight, qparams, bits=bits)).double().square().sum(1, keepdim=True)


def _bins_are_cheaper(in_features: int, bits: int) -> bool:
    """Finding 2^n - 1 places in a sorted row costs some ten steps each, as quantizing as many elements does."""
    return 8 * 2**bits <= in_features


def _binned(weight: Tensor, bits: int) -> Callable[[QParams], CodeSums]:
    """From sorted rows, in which the elements of one code are neighbours."""
    last = code_range(bits)[1]
    ordered = weight.double().sort(1).values
    before = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))  # sum of the first k elements
    count, total = weight.shape[1], before[:, -1:, None]
    upper = torch.arange(1, last + 1, device=weight.device, dtype=torch.float64)  # code k starts at (k - z - 1/2) D

    def sums(grid: QParams) -> CodeSums:
        edges = (upper - grid.zero_point[..., None] - 0.5) * grid.scale[..., None]  # [rows, I, last]
        places = torch.searchsorted(ordered, edges.flatten(1))
        above = (count - places).view(edges.shape).double()  # elements of code k or more
        weights = total - before.gather(1, places).view(edges.shape)  # and their sum
        return CodeSums(above.sum(2), (above * (2 * upper - 1)).sum(2), weights.sum(2))

    return sums


def _elementwise(weight: Tensor, bits: int) -> Callable[[QParams], CodeSums]:
    first, last = code_range(bits)
    elements = weight.double()[:, None]  # [rows, 1, in]

    def sums(grid: QParams) -> CodeSums:
        codes = torch.round(elements / grid.scale[..., None]).add_(grid.zero_point[..., None]).clamp_(first, last)
        return CodeSums(codes.sum(2), codes.square().sum(2), (codes * elements).sum(2))

    return sums
