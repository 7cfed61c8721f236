"""Statistics of means over prompts: intervals, whether two means differ, and what another processor changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from vdq.metrics.catalogue import Value

CONFIDENCE = 0.95
BEST, TIED = "best", "tied"
DEVIATIONS = 2  # standard deviations of a mean's change that count as a processor's noise
FILE = "processors.csv"


class Noise:
    """How much another processor changes the difference of two means; ``table`` as `processors.changes` makes it, None
    where that was not measured.
    """

    def __init__(self, table: pd.DataFrame | None = None) -> None:
        self.table = table

    @classmethod
    def read(cls, folder: Path) -> Noise:
        """Reads the file of ``folder`` that ``python -m vdq.reports.processors`` writes, if it is there."""
        path = folder / FILE
        return cls(pd.read_csv(path) if path.is_file() else None)

    def __call__(self, metric: str, bits: str, videos: int) -> float:
        """Two standard deviations of means over this many videos: those of all bit-widths together where this one was
        not measured, 0 where the metric was not.

        A video's change from one processor to the other is the difference of two roundings. So is the part that
        rounding has in the difference of two methods on one processor, which is why the deviations are the same.
        """
        if self.table is None:
            return 0.0
        rows = self.table[self.table["metric"] == metric]
        own = rows[rows["bits"] == bits]
        squares = (own if len(own) else rows)["per_video"] ** 2
        return DEVIATIONS * float(np.sqrt(squares.mean() / videos)) if len(squares) else 0.0

    @property
    def words(self) -> str:
        """A sentence for legends: whether it was measured, and on which processors."""
        if self.table is None:
            return "What another processor changes was not measured."
        pairs = self.table[["processor", "other_processor"]].drop_duplicates()
        told = "; ".join(f"{one} against {other}" for one, other in pairs.itertuples(index=False))
        return f"What another processor changes was measured (`{FILE}`): {told}."


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits between which the true mean lies with 95 % confidence; values [..., n] -> low and high [...].

    Student's interval joined with its correction for skewness, since neither alone holds its coverage for a few values:
    Student's misses too often where the values are skewed, the correction where they have long tails on both sides. NaN
    for a single value; the value itself if all are equal. Source: P. Hall, On the removal of skewness by
    transformation, Journal of the Royal Statistical Society B 54 (1992), 221-228, with Student's quantiles.
    """
    values = np.asarray(values, dtype=float)
    count = values.shape[-1]
    mean = values.mean(-1)
    if count < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    error = values.std(-1, ddof=1) / np.sqrt(count)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    skewness = _skewness(values)
    low = np.minimum(mean - quantile * error, mean - _corrected(quantile, skewness, count) * error)
    high = np.maximum(mean + quantile * error, mean - _corrected(-quantile, skewness, count) * error)
    return low, high


def _skewness(values: np.ndarray) -> np.ndarray:
    """Fisher's G1 of [..., n]; 0 for two values, and for equal ones."""
    count = values.shape[-1]
    deviations = values - values.mean(-1, keepdims=True)
    spread = np.sqrt((deviations**2).mean(-1))
    third = (deviations**3).mean(-1)
    ratio = np.divide(third, spread**3, out=np.zeros_like(third), where=spread > 0)
    return ratio * np.sqrt(count * (count - 1)) / max(count - 2, 1)


def _corrected(quantile: float, skewness: np.ndarray, count: int) -> np.ndarray:
    """Where a studentized mean has this quantile of Student's t: the inverse of Hall's cubic polynomial."""
    slope = skewness / np.sqrt(count)
    cubic = np.cbrt(1 + slope * (quantile - slope / 6)) - 1
    return np.divide(3 * cubic, slope, out=np.full_like(cubic, quantile), where=np.abs(slope) > 1e-6)


def share_interval(values: np.ndarray) -> tuple[float, float]:
    """Limits of a share with at least 95 % confidence (Clopper and Pearson); values [n] in 0..1, one for each prompt.

    A prompt with videos of several seeds is one trial, whose value is their share.
    """
    successes, count, tail = float(np.sum(values)), len(values), (1 - CONFIDENCE) / 2
    failures = count - successes
    low = stats.beta.ppf(tail, successes, failures + 1) if successes > 0 else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, failures) if failures > 0 else 1.0
    return float(low), float(high)


def compare(differences: np.ndarray, noise: float = 0.0, *, share: bool = False) -> int:
    """Whether paired differences [n] are more than chance: 1 if their mean is above zero, -1 if below, 0 within noise.

    More than chance: the 95 % interval leaves out zero (of a share's: the exact sign test over prompts, which is
    McNemar's for one video a prompt, rejects at 5 %), and the mean is larger than ``noise``.
    """
    mean = np.mean(differences)
    if not abs(mean) > noise:  # nor where it is no number
        return 0
    if share:
        wins, losses = int(np.sum(differences > 0)), int(np.sum(differences < 0))
        apart = stats.binomtest(wins, wins + losses).pvalue <= 1 - CONFIDENCE
    else:
        low, high = mean_interval(differences)
        apart = low > 0 or high < 0
    return int(np.sign(mean)) if apart else 0


def ranked(values: Mapping[Hashable, np.ndarray], noise: float = 0.0, *, share: bool = False) -> dict[Hashable, str]:
    """Marks what has the highest mean: BEST if it beats every other by more than chance, else TIED for it and for
    all that it does not beat. ``values`` are [n] each, of the same prompts; nothing is marked among fewer than two.
    """
    if len(values) < 2:
        return {}
    best = max(values, key=lambda name: np.mean(values[name]))
    rest = [name for name in values if name != best]
    tied = [name for name in rest if compare(values[best] - values[name], noise, share=share) <= 0]
    return dict.fromkeys([best, *tied], TIED) if tied else {best: BEST}


def with_marks(
    table: pd.DataFrame,
    rows: pd.DataFrame,
    by: Sequence[str],
    metrics: Sequence[Value],
    limit: Callable[[str, pd.DataFrame], float],
) -> pd.DataFrame:
    """``table`` with `<metric>_mark` of those of its ``rows`` that are `ranked` with the others of the same ``by``; ''
    elsewhere. Column `scores` holds a dictionary, by metric a value a prompt; ``limit`` gives the noise of a metric in
    the rows of a group.
    """
    for metric in metrics:
        name, marks = metric.name, {}
        for _, group in rows.groupby(list(by)):
            values = {index: scores[name] for index, scores in group["scores"].items() if name in scores}
            marks |= ranked(values, limit(name, group), share=metric.share)
        table[f"{name}_mark"] = [marks.get(index, "") for index in table.index]
    return table
