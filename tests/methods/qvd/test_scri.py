"""SCRI against numpy: shift, factors and coverage by hand, the expected error against measured errors."""

import numpy as np
import pytest
import torch

from vdq.methods.qvd.scri import (
    best_factors,
    channel_ranges,
    channel_shift,
    coverage,
    expected_error,
    threshold_factors,
)
from vdq.quant.affine import fake_quantize, qparams_from_range, quantize, tensor_range
from vdq.quant.time_ranges import TimeRanges

N, C, OUT = 6, 16, 24
RNG = np.random.default_rng(0)
CENTRES, WIDTHS = RNG.normal(0, 2, (N, C)).astype(np.float32), RNG.uniform(0.1, 3, (N, C)).astype(np.float32)
LO, HI = torch.from_numpy(CENTRES - WIDTHS), torch.from_numpy(CENTRES + WIDTHS)
WEIGHT = torch.from_numpy(RNG.normal(0, 1, (OUT, C)).astype(np.float32))
WIDE = torch.linspace(0.2, 1, C).pow(2)  # half widths of channels around 0, some much wider than others
FORMATS = {"weight_bits": 8, "act_bits": 6, "symmetric_acts": True}


@pytest.mark.parametrize("ranges", [1, 2, "per_step"])
def test_shift_is_the_centre_of_a_channel(ranges):
    groups = np.split(np.arange(N), {1: 1, 2: 2, "per_step": N}[ranges])
    lo, hi = LO.numpy(), HI.numpy()
    mid = [(lo[g].min(0) + hi[g].max(0)) / 2 for g in groups]
    mean = [((lo[g] + hi[g]) / 2).mean(0) for g in groups]
    steps = TimeRanges(N, ranges)
    np.testing.assert_allclose(channel_shift(LO, HI, steps), mid, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(channel_shift(LO, HI, steps, "mean"), mean, rtol=1e-6, atol=1e-6)
    bounds = channel_ranges(LO, HI, steps)
    np.testing.assert_array_equal(bounds[0], [lo[g].min(0) for g in groups])
    np.testing.assert_array_equal(bounds[1], [hi[g].max(0) for g in groups])


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="shift=median must be null or one of mid, mean"):
        channel_shift(LO, HI, TimeRanges(N), "median")


def test_only_channels_above_the_threshold_get_a_factor():
    s = threshold_factors(torch.tensor([1.0, 2.0, 4.0]), torch.tensor(2.0))
    assert s.tolist() == [1, 1, 2]


def test_coverage_counts_the_levels_of_every_channel():
    lo, hi = channel_ranges(LO, HI, TimeRanges(N, 2))
    for symmetric in (True, False):
        format_ = {"bits": 4, "symmetric": symmetric}
        act = qparams_from_range(lo.amin(-1), hi.amax(-1), **format_)
        counts = []
        for r in range(2):
            for c in range(C):
                values = torch.linspace(float(lo[r, c]), float(hi[r, c]), 2000)
                codes = quantize(values, type(act)(act.scale[r], act.zero_point[r]), **format_)
                counts.append(len(codes.unique()))
        assert coverage(lo, hi, act, **format_) == pytest.approx(np.mean(counts) / 16)


def test_shift_and_factors_raise_coverage():
    lo, hi = channel_ranges(LO, HI, TimeRanges(N))
    format_ = {"bits": 8, "symmetric": True}

    def covered(lo: torch.Tensor, hi: torch.Tensor) -> float:
        return coverage(lo, hi, qparams_from_range(lo.amin(-1), hi.amax(-1), **format_), **format_)

    z = channel_shift(LO, HI, TimeRanges(N))
    s = threshold_factors(torch.maximum(hi - z, z - lo)[0], (hi - z).mean())
    assert covered(lo, hi) < covered(lo - z, hi - z) < covered((lo - z) / s, (hi - z) / s)


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(16, 4), (4, 16), (4, 6)])
@pytest.mark.parametrize("threshold", [1.0, 0.4])
def test_expected_error_is_the_measured_one_of_evenly_spread_inputs(weight_bits, act_bits, threshold):
    s = threshold_factors(WIDE, torch.tensor(threshold))
    x = (2 * torch.rand(20000, C, generator=torch.Generator().manual_seed(0)) - 1) * WIDE
    scaled = WEIGHT * s
    grid = qparams_from_range(*tensor_range(scaled, "per_channel"), bits=weight_bits, symmetric=True)
    act = qparams_from_range(
        *(bound / 1 for bound in (-(WIDE / s).max(), (WIDE / s).max())), bits=act_bits, symmetric=True
    )
    y = fake_quantize(x / s, act, bits=act_bits, symmetric=True)
    y = y @ fake_quantize(scaled, grid, bits=weight_bits, symmetric=True).T
    measured = float((y - x @ WEIGHT.T).square().sum(1).mean())
    bits = {"weight_bits": weight_bits, "act_bits": act_bits}
    assert expected_error(WEIGHT, -WIDE[None], WIDE[None], s, **bits) == pytest.approx(measured, rel=0.1)


def test_the_threshold_has_the_smallest_expected_error():
    lo, hi = -WIDE[None], WIDE[None]
    chosen = best_factors(WEIGHT, lo, hi, **FORMATS)
    errors = [
        expected_error(WEIGHT, lo, hi, (WIDE / t).clamp(min=1), **FORMATS)
        for t in torch.linspace(float(WIDE.mean()), float(WIDE.max()), 101)
    ]
    ours = expected_error(WEIGHT, lo, hi, chosen, **FORMATS)
    assert ours == pytest.approx(min(errors), rel=1e-3)
    assert ours < expected_error(WEIGHT, lo, hi, torch.ones(C), **FORMATS)
    assert float(chosen.min()) == 1 < float(chosen.max())


def test_equal_and_dead_channels_need_no_factor():
    flat = torch.ones(1, C)
    assert best_factors(WEIGHT, -flat, flat, **FORMATS).tolist() == [1] * C
    assert best_factors(WEIGHT, 0 * flat, 0 * flat, **FORMATS).tolist() == [1] * C
