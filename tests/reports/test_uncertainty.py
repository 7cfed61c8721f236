"""Intervals hold their coverage and marks are no chance; scipy, simulation and the binomial distribution tell."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import brentq

from vdq.reports.uncertainty import BEST, FILE, TIED, Noise, compare, mean_interval, ranked, share_interval

DRAWS = 20_000
POPULATIONS = {  # how they are drawn, their mean
    "normal": (lambda rng, size: rng.standard_normal(size), 0.0),
    "long tails": (lambda rng, size: rng.laplace(size=size), 0.0),
    "difference of skewed ones": (lambda rng, size: rng.lognormal(size=size) - rng.lognormal(size=size), 0.0),
    "skewed": (lambda rng, size: rng.exponential(size=size), 1.0),
    "very skewed": (lambda rng, size: rng.lognormal(size=size), np.exp(0.5)),
}
LEAST = {"skewed": {8: 0.94}, "very skewed": {8: 0.91, 16: 0.92, 48: 0.94}}  # coverage; elsewhere what is asked for


@pytest.mark.parametrize("count", [8, 16, 48])
@pytest.mark.parametrize("name", POPULATIONS)
def test_coverage_of_the_interval(name, count):
    """The percentile bootstrap covers 89 % of normal means with 8 values, and 79 % of the very skewed ones'."""
    draw, mean = POPULATIONS[name]
    low, high = mean_interval(draw(np.random.default_rng(0), (DRAWS, count)))
    least = LEAST.get(name, {}).get(count, 0.95)
    error = np.sqrt(least * (1 - least) / DRAWS)
    assert least - 3 * error < np.mean((low <= mean) & (mean <= high)) < 0.98  # and no wider than it has to be


def test_symmetric_values_have_students_interval():
    values = np.array([1.0, 2.0, 4.0, 8.0, 9.0, 13.0, 15.0, 16.0])
    values = np.concatenate([values, 17 - values])
    assert mean_interval(values) == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(0.95))


def test_correction_for_skewness_solves_halls_equation():
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.5, 4.0])
    mean, error = values.mean(), stats.sem(values)
    skewness, quantile = stats.skew(values, bias=False), stats.t.ppf(0.975, 7)

    def transformed(t: float) -> float:
        return t + skewness * t**2 / (3 * 8**0.5) + skewness**2 * t**3 / (27 * 8) + skewness / (6 * 8**0.5)

    solved = [brentq(lambda t, side=side: transformed(t) - side * quantile, -100, 100) for side in (1, -1)]
    below, above = (mean - t * error for t in solved)
    student = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert student.low < below and student.high < above  # values are skewed to the right, so the long side is above
    assert mean_interval(values) == pytest.approx((student.low, above))
    assert mean_interval(-values) == pytest.approx((-above, -student.low))


def test_few_and_equal_values():
    assert np.isnan(mean_interval(np.array([0.5]))).all()
    assert mean_interval(np.array([0.0, 1.0])) == pytest.approx(stats.ttest_1samp([0, 1], 0).confidence_interval(0.95))
    assert mean_interval(np.full(8, 0.5)) == (0.5, 0.5)


@pytest.mark.parametrize(("successes", "count"), [(8, 8), (0, 8), (7, 8), (44, 48)])
def test_interval_of_a_share_is_clopper_and_pearsons(successes, count):
    values = np.arange(count) < successes
    expected = stats.binomtest(successes, count).proportion_ci(0.95, method="exact")
    assert share_interval(values) == pytest.approx((expected.low, expected.high))


def test_eight_of_eight_are_no_certainty():
    low, high = share_interval(np.ones(8))
    assert (low, high) == (pytest.approx(0.025 ** (1 / 8)), 1)  # below that, eight of eight happen in 1 of 40 cases
    thirds = np.array([1, 1, 1, 1, 1, 1, 1, 2 / 3])  # one video of three seeds failed
    assert share_interval(np.ones(8) - (np.arange(8) == 0))[0] < share_interval(thirds)[0] < low


@pytest.mark.parametrize("count", [8, 16, 48])
def test_coverage_of_a_shares_interval(count):
    found = [share_interval(np.arange(count) < successes) for successes in range(count + 1)]
    low, high = np.array(found).T
    for share in np.linspace(0.01, 0.99, 99):
        chances = stats.binom.pmf(np.arange(count + 1), count, share)
        assert chances[(low <= share) & (share <= high)].sum() >= 0.95


@pytest.mark.parametrize("count", [8, 48])
def test_equal_methods_are_seldom_told_apart(count):
    rng = np.random.default_rng(2)
    draws = 1000
    told = [compare(rng.standard_normal(count)) for _ in range(draws)]
    assert np.count_nonzero(told) / draws < 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_differences_have_a_sign_where_they_are_no_chance():
    differences = np.array([0.5, 0.6, 0.4, 0.5, 0.7, 0.3, 0.5, 0.4])
    assert compare(differences) == 1 and compare(-differences) == -1
    assert compare(differences, noise=0.4) == 1 and compare(differences, noise=0.5) == 0
    assert compare(differences - 0.48) == 0
    assert compare(np.array([0.5])) == 0  # one prompt tells nothing
    assert compare(np.zeros(8)) == compare(np.full(8, np.nan)) == 0
    assert compare(np.full(8, 0.1)) == 1


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (6, 0), (7, 1), (0, 6), (20, 10), (22, 8)])
def test_shares_are_compared_by_mcnemars_exact_test(wins, losses):
    differences = np.repeat([1, -1, 0], [wins, losses, 48 - wins - losses])
    chance = min(1, 2 * stats.binom.cdf(min(wins, losses), wins + losses, 0.5))
    expected = np.sign(wins - losses) if chance <= 0.05 else 0
    assert compare(differences, share=True) == expected
    assert expected == {(6, 0): 1, (0, 6): -1, (22, 8): 1}.get((wins, losses), 0)


def test_the_best_is_marked_alone_or_with_what_it_does_not_beat():
    rng = np.random.default_rng(3)
    prompts = rng.standard_normal(48)
    values = {
        name: prompts + mean + 0.1 * rng.standard_normal(48) for name, mean in {"a": 1, "b": 0.99, "c": 0}.items()
    }
    assert ranked(values) == {max("ab", key=lambda name: values[name].mean()): TIED} | dict.fromkeys("ab", TIED)
    assert ranked({name: values[name] for name in "ac"}) == {"a": BEST}
    assert ranked({name: values[name] for name in "ac"}, noise=2) == {"a": TIED, "c": TIED}
    assert ranked({"a": values["a"]}) == {}  # nothing to be better than


def measured(**changes: float) -> pd.DataFrame:
    rows = [{"metric": "psnr", "bits": bits, "per_video": change} for bits, change in changes.items()]
    names = {"processor": "A", "other_processor": "B"}
    return pd.DataFrame([*rows, {"metric": "psnr", "bits": "w4a4", "per_video": 0.5}]).assign(**names)


def test_noise_of_another_processor(tmp_path):
    noise = Noise(measured(w8a8=0.3, w4a4=1.0))
    assert noise("psnr", "w8a8", 9) == pytest.approx(2 * 0.3 / 3)
    assert noise("psnr", "w4a4", 4) == pytest.approx(2 * np.sqrt((1 + 0.25) / 2) / 2)
    assert noise("psnr", "w6a6", 1) == pytest.approx(2 * np.sqrt((0.09 + 1 + 0.25) / 3))  # of all bit-widths
    assert noise("clipsim", "w8a8", 4) == 0
    assert "A against B" in noise.words
    missing = Noise.read(tmp_path)
    assert missing("psnr", "w8a8", 9) == 0 and "not measured" in missing.words
    noise.table.to_csv(tmp_path / FILE, index=False)
    assert Noise.read(tmp_path)("psnr", "w8a8", 9) == pytest.approx(0.2)


def test_noise_covers_what_rounding_does_to_a_difference():
    """Two methods of equal quality: on each processor every video's score is moved at random."""
    rng = np.random.default_rng(4)
    videos, draws = 16, 4000
    rounding = rng.normal(0, 0.5, (2, 2, draws, videos))  # processor, method
    change = rounding[1, 0] - rounding[0, 0]
    table = measured(w8a8=np.sqrt((change**2).mean()))
    moved = (rounding[0, 0] - rounding[0, 1]).mean(-1)  # what rounding alone makes of their difference
    assert np.mean(np.abs(moved) <= Noise(table)("psnr", "w8a8", videos)) == pytest.approx(0.954, abs=0.01)
