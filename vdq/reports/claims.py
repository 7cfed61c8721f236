"""What the paper says of its tables, as claims that any set of runs can be asked about.

A claim reads the scores of every prompt and answers yes, no, within noise, or that a value is missing. Thresholds in
points of VQA are those that the paper's own numbers fit; they are part of the claim's words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from vdq.metrics.catalogue import CLIPSIM, PSNR, VQA_A, VQA_T, Value
from vdq.reports.paper_tables import Limit
from vdq.reports.scores import key_of, per_video
from vdq.reports.uncertainty import compare

VQA = (VQA_A.name, VQA_T.name)
Scores = Callable[[str, str, str], np.ndarray]  # method, bits (w8a8), metric -> a score a prompt; KeyError if none
SeedScores = Callable[[str, str, str], dict[int, np.ndarray]]  # the same by seed
PLUS, PLAIN, DYNAMIC = "static_plus", ("tsq_tsw", "asq"), ("dynamic", "dvd_quant")


class Margin(NamedTuple):
    """By how much a part of a claim is met: ``values`` has a number a prompt, and their mean should be above zero."""

    metric: str
    bits: str
    values: np.ndarray


class Claim(NamedTuple):
    """A claim of the paper about some ``tables``; ``asks`` returns its margins and the numbers that it looked at."""

    name: str
    words: str
    tables: tuple[str, ...]
    asks: Callable[[Scores], tuple[list[Margin], str]]


class Goal(NamedTuple):
    """What this project wants of a method; ``asks`` is as for a claim, but gets the scores of every seed."""

    name: str
    words: str
    asks: Callable[[SeedScores], tuple[list[Margin], str]]


def scores_of(table: pd.DataFrame) -> Scores:
    """Access to the scores of a filled table."""
    rows = {(row["method"], f"w{row['w_bits']}a{row['a_bits']}"): row for _, row in table.iterrows()}

    def value(method: str, bits: str, metric: str) -> np.ndarray:
        scores = rows[method, bits].get("scores")
        if not isinstance(scores, dict):
            raise KeyError(method)
        return scores[metric]

    return value


def paper_scores_of(table: pd.DataFrame) -> Scores:
    """Access to the paper's own means, an array of one each."""
    rows = {(row["method"], f"w{row['w_bits']}a{row['a_bits']}"): row for _, row in table.iterrows()}

    def value(method: str, bits: str, metric: str) -> np.ndarray:
        number = rows[method, bits][f"paper_{metric}"]
        if pd.isna(number):
            raise KeyError(metric)
        return np.array([number])

    return value


def seed_scores_of(table: pd.DataFrame) -> SeedScores:
    """Access to the scores of unchanged methods in a table with one row a run (`vdq.reports.neighbours.by_seed`)."""
    rows = table[table["changed"] == ""].set_index(["method", "bits"])

    def values(method: str, bits: str, metric: str) -> dict[int, np.ndarray]:
        videos = {run.seed: per_video(run.folder) for run in rows.loc[[(method, bits)]].itertuples()}
        return {seed: scores[key_of(metric, scores.columns)].to_numpy() for seed, scores in videos.items()}

    return values


def verdict(claim: Claim | Goal, value: Scores | SeedScores, limit: Limit | None = None) -> tuple[str, str]:
    """Answers a claim: 'holds', 'does not hold', 'within noise' or 'not testable', and the numbers.

    It holds if every margin is above zero by more than chance, and does not if one is below by more than chance;
    ``limit`` is what a margin has to exceed. Without it the means are asked alone, as of the paper's numbers, whose
    scores nobody knows.
    """
    try:
        margins, numbers = claim.asks(value)
    except KeyError:
        return "not testable", "a run or a metric is missing"
    if limit is None:
        answers = [1 if margin.values.mean() >= 0 else -1 for margin in margins]
    else:
        answers = [compare(margin.values, limit(margin.metric, margin.bits)) for margin in margins]
    return {1: "holds", 0: "within noise", -1: "does not hold"}[min(answers)], numbers


def _beats(bits: str, value: Value, others: tuple[str, ...], least: float) -> Callable:
    """The method beats all others by `least` or more, with every seed."""
    metric = value.name

    def asks(values: SeedScores) -> tuple[list[Margin], str]:
        own, rest = values(PLUS, bits, metric), {other: values(other, bits, metric) for other in others}
        margins, told = [], []
        for seed, scores in sorted(own.items()):
            rivals = {other: seeds[seed] for other, seeds in rest.items()}
            margins += [Margin(metric, bits, scores - rival - least) for rival in rivals.values()]
            best = max(rivals, key=lambda name: rivals[name].mean())
            mean, second = scores.mean(), rivals[best].mean()
            gain = value.text(mean - second, "+")
            told.append(f"seed {seed}: {value.text(mean)}, {best} {value.text(second)} ({gain})")
        return margins, "; ".join(told)

    return asks


def _near_full_precision(method: str, points: float) -> Callable:
    def asks(value: Scores) -> tuple[list[Margin], str]:
        lost = {metric: value("fp16", "w16a16", metric) - value(method, "w8a8", metric) for metric in VQA}
        margins = [Margin(metric, "w8a8", points - values) for metric, values in lost.items()]
        return margins, "loses " + _listed(lost.values())

    return asks


def _loses(methods: tuple[str, ...], points: float) -> Callable:
    def asks(value: Scores) -> tuple[list[Margin], str]:
        lost = [
            (metric, value("fp16", "w16a16", metric) - value(method, "w8a8", metric))
            for method in methods
            for metric in VQA
        ]
        margins = [Margin(metric, "w8a8", values - points) for metric, values in lost]
        return margins, "lose " + _listed(values for _, values in lost)

    return asks


def _static_beats_dynamic(bits: tuple[str, ...]) -> Callable:
    def asks(value: Scores) -> tuple[list[Margin], str]:
        margins = [
            Margin(metric, width, value(method, width, metric) - value("dynamic", width, metric))
            for width in bits
            for method in ("asq", "tsq_tsw")
            for metric in VQA
        ]
        return margins, "gain " + _listed(margin.values for margin in margins)

    return asks


def _breaks(bits: str, share: float) -> Callable:
    def asks(value: Scores) -> tuple[list[Margin], str]:
        margins, left = [], []
        for method in ("asq", "tsq_tsw"):
            for metric in VQA:
                own, full = value(method, bits, metric), value("fp16", "w16a16", metric)
                margins.append(Margin(metric, bits, share * full - own))
                left.append(f"{100 * own.mean() / full.mean():.0f} %")
        return margins, "keep " + ", ".join(left)

    return asks


def _best(method: str, metric: str, others: tuple[str, ...]) -> Callable:
    def asks(value: Scores) -> tuple[list[Margin], str]:
        own, rest = value(method, "w8a8", metric), {other: value(other, "w8a8", metric) for other in others}
        best = max(rest, key=lambda name: rest[name].mean())
        margins = [Margin(metric, "w8a8", own - values) for values in rest.values()]
        return margins, f"{own.mean():.4f}, next {best} {rest[best].mean():.4f}"

    return asks


def _listed(points: Iterable[np.ndarray]) -> str:
    return ", ".join(f"{values.mean():z.1f}" for values in points)  # z: no minus before zero


RANGES = ("asq", "tsq_2tr", "tsq_4tr", "tsq_10tr")
CLAIMS = [
    Claim(
        "dynamic_w8a8",
        "Dynamic W8A8 loses at most 2 points of VQA-a and VQA-t.",
        ("table1", "table2"),
        _near_full_precision("dynamic", 2),
    ),
    Claim(
        "asq_w8a8",
        "ASQ at W8A8 keeps VQA-a and VQA-t within 3 points of full precision.",
        ("table1", "table2"),
        _near_full_precision("asq", 3),
    ),
    Claim(
        "smoothing_needed",
        "Without smoothing, CW+TW and TSW lose at least 8 points of VQA-a and VQA-t at W8A8.",
        ("table1", "table2"),
        _loses(("cw_tw", "tsw"), 8),
    ),
    Claim(
        "tsq_clipsim",
        "TSQ+TSW has the highest CLIPSIM of the quantized models at W8A8.",
        ("table1", "table2"),
        _best("tsq_tsw", CLIPSIM.name, ("dynamic", "cw_tw", "tsw", "asq")),
    ),
    Claim(
        "four_bit_weights",
        "With 4-bit weights (W4A8, W4A16) both static methods beat dynamic in VQA-a and VQA-t.",
        ("table3",),
        _static_beats_dynamic(("w4a8", "w4a16")),
    ),
    Claim(
        "w4a4_breaks",
        "W4A4 breaks the static methods: at most 2 % of full precision's VQA-a and VQA-t is left.",
        ("table3",),
        _breaks("w4a4", 0.02),
    ),
    Claim(
        "average",
        "On average over nine bit-widths both static methods beat dynamic in VQA-a and VQA-t.",
        ("table3",),
        _static_beats_dynamic(("waverageaaverage",)),
    ),
    Claim(
        "ranges_clipsim",
        "A range for each step has the highest CLIPSIM of all numbers of time ranges.",
        ("table4", "table5"),
        _best("tsq_tsw", CLIPSIM.name, RANGES),
    ),
    Claim(
        "ranges_vqa",
        "One range for all steps (ASQ) has the highest VQA-a of all numbers of time ranges.",
        ("table4", "table5"),
        _best("asq", VQA_A.name, ("tsq_2tr", "tsq_4tr", "tsq_10tr", "tsq_tsw")),
    ),
]
GOALS = [
    Goal(
        f"{bits}_3db",
        f"At {bits.upper()} {PLUS} has with every seed 3 dB more PSNR than the better of {' and '.join(PLAIN)}.",
        _beats(bits, PSNR, PLAIN, 3),
    )
    for bits in ("w4a8", "w6a6")
] + [
    Goal(
        "w4a4_clipsim",
        f"At W4A4 {PLUS} has with every seed a higher CLIPSIM than every dynamic method ({', '.join(DYNAMIC)}).",
        _beats("w4a4", CLIPSIM, DYNAMIC, 0),
    )
]
