"""HTDQ against numpy: nearest level by brute force in the family's own coordinate, scores by loops."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vdq.methods.qvd import temporal
from vdq.methods.qvd.temporal import (
    FAMILIES,
    candidates,
    choose,
    discriminability,
    frozen_channels,
    step_difference_error,
)
from vdq.quant.codebook import Codebook

LO, HI = torch.tensor(-0.3), torch.tensor(5.0)
X = torch.cat([torch.linspace(-0.29, 4.99, 4001), torch.logspace(-6, 0, 500), torch.zeros(1)])


def features(steps: int = 12, channels: int = 30) -> Tensor:
    """Skewed as SiLU's outputs are, and slow from step to step."""
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(steps, channels, generator=generator).mul(0.3).cumsum(0)
    return F.silu(walk + 2 * torch.randn(channels, generator=generator))


def nearest(x: np.ndarray, levels: np.ndarray, coordinate=lambda v: v) -> np.ndarray:
    distance = np.abs(coordinate(x)[:, None] - coordinate(levels)[None])
    return levels[distance.argmin(1)]


def check(codebook: Codebook, expected: np.ndarray, bits: int) -> None:
    """Equal but for values on an edge, which fp32 may put on either side."""
    assert len(codebook.levels) <= 2**bits and len(codebook.edges) == len(codebook.levels) - 1
    assert bool((codebook.levels.diff() > 0).all())
    ours = codebook(X).numpy()
    close = np.isclose(ours, expected, rtol=1e-5, atol=1e-7)
    assert close.mean() > 0.998 and np.isin(ours, codebook.levels.numpy()).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_uniform_is_rounding_to_the_affine_grid(bits):
    scale = (5.0 + 0.3) / (2**bits - 1)
    zero = np.rint(0.3 / scale)
    expected = (np.clip(np.rint(X.double().numpy() / scale) + zero, 0, 2**bits - 1) - zero) * scale
    check(temporal.uniform(LO, HI, bits), expected, bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_log2_rounds_the_exponent_as_the_port(bits):
    x = X.double().numpy()
    with np.errstate(divide="ignore"):
        exponent = np.rint(-np.log2(np.abs(x) / 5.0))
    count = 2 ** (bits - 1) - 1
    expected = np.where(exponent < count, np.sign(x) * 5.0 * 2.0 ** -np.clip(exponent, 0, count), 0)
    check(temporal.log2(HI, bits), expected, bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("edge", [0.05, 0.4])
def test_mixed_is_log2_below_the_edge_and_uniform_above(bits, edge):
    codebook, count = temporal.mixed(HI, edge, bits), 2 ** (bits - 2)
    positive = codebook.levels[codebook.levels > 0].double().numpy()
    width = (1 - edge) * 5 / count
    expected = [edge * 5 * 2.0**-k for k in range(count - 1)] + [edge * 5 + width * j for j in range(1, count + 1)]
    np.testing.assert_allclose(positive, sorted(expected), rtol=1e-5)
    assert torch.equal(codebook.levels, -codebook.levels.flip(0)) and torch.equal(
        codebook.edges, -codebook.edges.flip(0)
    )
    above = X[X > (edge + 1e-3) * 5 + width / 2]
    np.testing.assert_allclose(codebook(above), nearest(above.double().numpy(), positive), rtol=1e-5)
    below = X[(X > 0) & (X < edge * 5)].double().numpy()
    with np.errstate(divide="ignore"):
        exponent = np.rint(-np.log2(below / (edge * 5)))
    powers = np.where(exponent < count - 1, edge * 5 * 2.0**-exponent, 0)
    ours = codebook(torch.from_numpy(below)).numpy()
    assert np.isclose(ours, powers, rtol=1e-5).mean() > 0.995


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("power", [1.5, 2.0, 4.0])
def test_companded_is_uniform_behind_the_root(bits, power):
    x = X.double().numpy()
    lo, hi = -(0.3 ** (1 / power)), 5 ** (1 / power)
    scale = (hi - lo) / (2**bits - 1)
    zero = np.rint(-lo / scale)
    root = np.sign(x) * np.abs(x) ** (1 / power)
    back = (np.clip(np.rint(root / scale) + zero, 0, 2**bits - 1) - zero) * scale
    check(temporal.companded(LO, HI, power, bits), np.sign(back) * np.abs(back) ** power, bits)


def test_scores_equal_loops():
    e = features()
    q = temporal.uniform(LO, HI, 4)(e)
    a, b = e.double().numpy(), q.double().numpy()
    steps = [np.linalg.norm((b[i] - b[i + 1]) - (a[i] - a[i + 1])) / np.linalg.norm(a[i] - a[i + 1]) for i in range(11)]
    assert step_difference_error(e, q) == pytest.approx(np.mean(steps), rel=1e-6)
    pairs = [np.linalg.norm(b[i] - b[j]) / np.linalg.norm(a[i] - a[j]) for i in range(12) for j in range(i + 1, 12)]
    assert discriminability(e, q) == pytest.approx(np.mean(pairs), rel=1e-6)
    assert frozen_channels(q) == pytest.approx(np.mean([len(set(channel)) == 1 for channel in b.T]))
    assert 0 < frozen_channels(q) < 1


def test_exact_and_constant_features_have_the_scores_of_their_docstrings():
    e = features()
    assert (step_difference_error(e, e), discriminability(e, e)) == (0, 1)
    assert discriminability(e, torch.zeros_like(e)) == 0 and step_difference_error(e, torch.zeros_like(e)) == 1
    same = e[:1].repeat(4, 1)
    assert (step_difference_error(same, same + 1), discriminability(same, same), frozen_channels(same)) == (0, 1, 1)
    repeated = e[[0, 0, 1]]  # a pair of equal features does not count
    assert discriminability(repeated, repeated) == 1


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_the_choice_has_the_smallest_error_of_all_candidates(bits):
    e = features()
    trials = choose(e, bits)
    assert {trial.candidate.family for trial in trials} == set(FAMILIES)
    errors = {}
    for candidate in candidates(e, bits):
        error = step_difference_error(e, candidate.codebook(e))
        errors[candidate.family] = min(error, errors.get(candidate.family, np.inf))
    assert {trial.candidate.family: trial.error for trial in trials} == errors
    assert trials[0].error == min(errors.values()) and trials[0].error <= errors["uniform"]


def test_one_step_is_chosen_by_the_features_own_error():
    e = features(steps=1)
    trials = choose(e, 4)
    smallest = min(float((c.codebook(e) - e).norm() / e.norm()) for c in candidates(e, 4))
    assert trials[0].error == 0 and trials[0].relative_l2 == pytest.approx(smallest, rel=1e-6)


def test_features_of_zeros_and_wide_grids_are_exact():
    assert choose(torch.zeros(3, 4), 4)[0].relative_l2 == 0
    assert choose(features(), 16)[0].relative_l2 < 1e-4


def test_rejects_other_bits_and_broken_features():
    with pytest.raises(ValueError, match="temporal_bits=1 must be an integer in 2..16"):
        choose(features(), 1)
    with pytest.raises(ValueError, match="temporal features have NaN or infinite values"):
        choose(features() / 0, 4)
