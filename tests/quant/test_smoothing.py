"""Smoothing factors, their aggregation over time, and ranges of smoothed activations."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vdq.quant.smoothing import aggregate_absmax, range_over_steps, smoothed_range, smoothing_factors
from vdq.quant.time_ranges import TimeRanges


def test_running_average_of_the_specification():
    absmax = torch.tensor([[1.0], [10.0], [2.0]])
    late = aggregate_absmax(absmax, TimeRanges(3), order="descending_t")
    assert late.item() == pytest.approx(1.4775)
    early = aggregate_absmax(absmax, TimeRanges(3), order="ascending_t")
    assert early.item() == pytest.approx(0.95 * (0.95 * 2 + 0.05 * 10) + 0.05 * 1)


def test_running_average_stays_inside_its_range():
    absmax = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    joined = aggregate_absmax(absmax, TimeRanges(6, 3), momentum=0.8).numpy()
    a = absmax.numpy()
    for r in range(3):  # ascending t: the later sampling step of the pair comes first
        np.testing.assert_allclose(joined[r], 0.8 * a[2 * r + 1] + 0.2 * a[2 * r], rtol=1e-6)
    torch.testing.assert_close(aggregate_absmax(absmax, TimeRanges(6, "per_step")), absmax)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.625, 1.0])
def test_factors_equal_numpy(alpha):
    generator = torch.Generator().manual_seed(1)
    act, weight = torch.rand(3, 7, generator=generator) + 0.01, torch.rand(7, generator=generator) + 0.01
    expected = act.double().numpy() ** alpha / weight.double().numpy() ** (1 - alpha)
    np.testing.assert_allclose(smoothing_factors(act, weight, alpha=alpha), expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_leaves_the_layer_exact(alpha):
    """(X / s)(W * s)^T + b equals X W^T + b, also with channels that are zero in X, in W or in both."""
    generator = torch.Generator().manual_seed(2)
    x, w = torch.randn(50, 12, generator=generator), torch.randn(9, 12, generator=generator)
    x[:, 0], w[:, 1] = 0, 0
    x[:, 2] = w[:, 2] = 0
    s = smoothing_factors(x.abs().amax(0), w.abs().amax(0), alpha=alpha)
    assert torch.isfinite(s).all() and (s > 0).all()
    torch.testing.assert_close(F.linear(x / s, w * s), F.linear(x, w), rtol=1e-4, atol=1e-4)


def test_dead_channels_get_factor_one():
    act, weight = torch.tensor([[0.0, 2.0, 0.0, 1e-38]]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert smoothing_factors(act, weight, alpha=0.5)[0, :3].tolist() == [1, 1, 1]
    assert smoothing_factors(act, weight, alpha=1.0)[0].tolist() == [1, 2, 1, 1]


def test_smoothed_range_equals_that_of_the_smoothed_activation_bit_for_bit():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 40, 16, generator=generator) * torch.logspace(-2, 2, 16)  # step, token, channel
    s = torch.rand(6, 16, generator=generator) + 0.01
    lo, hi = smoothed_range(x.amin(1), x.amax(1), s)
    for step in range(6):
        smoothed = x[step].numpy() / s[step].numpy()
        assert lo[step] == smoothed.min() and hi[step] == smoothed.max()
    joined_lo, joined_hi = range_over_steps(lo, hi, TimeRanges(6, 2).index)
    smoothed = x.numpy() / s[:, None].numpy()
    assert joined_lo.tolist() == [smoothed[:3].min(), smoothed[3:].min()]
    assert joined_hi.tolist() == [smoothed[:3].max(), smoothed[3:].max()]


def test_ranges_of_unequal_length_join_their_own_steps():
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(7, 3, generator=generator)
    groups = [[0, 1, 2], [3, 4], [5, 6]]  # by hand
    lo, hi = range_over_steps(values[:, 0], values[:, 1], TimeRanges(7, 3).index)
    assert lo.tolist() == [values[g, 0].numpy().min() for g in groups]
    assert hi.tolist() == [values[g, 1].numpy().max() for g in groups]
    joined = aggregate_absmax(values.abs(), TimeRanges(7, 3), momentum=0.8, order="descending_t").numpy()
    for average, (first, *rest) in zip(joined, groups, strict=True):
        expected = values[first].abs().numpy()
        for step in rest:
            expected = 0.8 * expected + 0.2 * values[step].abs().numpy()
        np.testing.assert_allclose(average, expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "high"])
def test_alpha_outside_0_to_1_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be a number in 0..1"):
        smoothing_factors(torch.ones(1, 2), torch.ones(2), alpha=alpha)


def test_unknown_order_and_momentum_are_refused():
    with pytest.raises(ValueError, match="ema_order=random must be one of ascending_t, descending_t"):
        aggregate_absmax(torch.ones(2, 2), TimeRanges(2), order="random")
    with pytest.raises(ValueError, match="momentum=1.5 must be a number in 0..1"):
        aggregate_absmax(torch.ones(2, 2), TimeRanges(2), momentum=1.5)
