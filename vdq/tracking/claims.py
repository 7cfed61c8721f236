"""What the paper says of its tables, as claims that any set of runs can be asked about.

A claim reads values and answers yes, no, or that a value is missing. Thresholds in points of VQA are those that the
paper's own numbers fit; they are part of the claim's words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

VQA = ("vqa_a", "vqa_t")
Value = Callable[[str, str, str], float]  # method, bits such as w8a8, metric; KeyError where there is none
SeedValues = Callable[[str, str, str], pd.Series]  # the same with the value of every seed, by seed
PLUS, PLAIN, DYNAMIC = "static_plus", ("tsq_tsw", "asq"), ("dynamic", "dvd_quant")


class Claim(NamedTuple):
    """``tables`` are those that the claim is about, ``holds`` tells whether it does and the numbers it looked at."""

    name: str
    words: str
    tables: tuple[str, ...]
    holds: Callable[[Value], tuple[bool, str]]


class Goal(NamedTuple):
    """What this project wants of a recipe; ``holds`` as for a claim, but from the values of every seed."""

    name: str
    words: str
    holds: Callable[[SeedValues], tuple[bool, str]]


def values_of(table: pd.DataFrame, prefix: str = "") -> Value:
    """Access to the values of a filled table; ``prefix`` 'paper_' to the paper's own."""
    rows = {(row["method"], f"w{row['w_bits']}a{row['a_bits']}"): row for _, row in table.iterrows()}

    def value(method: str, bits: str, metric: str) -> float:
        number = rows[method, bits][prefix + metric]
        if pd.isna(number):
            raise KeyError(metric)
        return float(number)

    return value


def seeds_of(table: pd.DataFrame) -> SeedValues:
    """Access to the values of unchanged recipes in a table with one row a run (`vdq.tracking.neighbours.by_seed`)."""
    rows = table[table["changed"] == ""].set_index(["method", "bits"])

    def values(method: str, bits: str, metric: str) -> pd.Series:
        return rows.loc[[(method, bits)]].set_index("seed")[metric].sort_index()

    return values


def verdict(claim: Claim | Goal, value: Value | SeedValues) -> tuple[str, str]:
    """'holds', 'does not hold' or 'not testable', and the numbers."""
    try:
        holds, numbers = claim.holds(value)
    except KeyError:
        return "not testable", "a run or a metric is missing"
    return "holds" if holds else "does not hold", numbers


def _beats(bits: str, metric: str, others: tuple[str, ...], margin: float) -> Callable[[SeedValues], tuple[bool, str]]:
    """By `margin` or more, and by more than nothing, with every seed."""
    digits = 4 if metric == "clipsim" else 2

    def holds(values: SeedValues) -> tuple[bool, str]:
        own = values(PLUS, bits, metric)
        rest = pd.DataFrame({other: values(other, bits, metric).reindex(own.index) for other in others})
        if rest.isna().any(axis=None):  # a seed that another recipe lacks
            raise KeyError(metric)
        best, names = rest.max(axis=1), rest.idxmax(axis=1)
        told = [
            f"seed {seed}: {own[seed]:.{digits}f}, {names[seed]} {best[seed]:.{digits}f} "
            f"({own[seed] - best[seed]:+.{digits}f})"
            for seed in own.index
        ]
        gains = own - best
        return bool((gains >= margin).all() and (gains > 0).all()), "; ".join(told)

    return holds


def _near_full_precision(method: str, points: float) -> Callable[[Value], tuple[bool, str]]:
    def holds(value: Value) -> tuple[bool, str]:
        lost = [value("fp16", "w16a16", metric) - value(method, "w8a8", metric) for metric in VQA]
        return max(lost) <= points, "loses " + _listed(lost)

    return holds


def _loses(methods: tuple[str, ...], points: float) -> Callable[[Value], tuple[bool, str]]:
    def holds(value: Value) -> tuple[bool, str]:
        lost = [value("fp16", "w16a16", metric) - value(method, "w8a8", metric) for method in methods for metric in VQA]
        return min(lost) >= points, "lose " + _listed(lost)

    return holds


def _static_beats_dynamic(bits: tuple[str, ...]) -> Callable[[Value], tuple[bool, str]]:
    def holds(value: Value) -> tuple[bool, str]:
        gains = [
            value(method, width, metric) - value("dynamic", width, metric)
            for width in bits
            for method in ("asq", "tsq_tsw")
            for metric in VQA
        ]
        return min(gains) > 0, "gain " + _listed(gains)

    return holds


def _breaks(bits: str, share: float) -> Callable[[Value], tuple[bool, str]]:
    def holds(value: Value) -> tuple[bool, str]:
        left = [
            value(method, bits, metric) / value("fp16", "w16a16", metric)
            for method in ("asq", "tsq_tsw")
            for metric in VQA
        ]
        return max(left) <= share, "keep " + ", ".join(f"{100 * part:.0f} %" for part in left)

    return holds


def _best(method: str, metric: str, others: tuple[str, ...]) -> Callable[[Value], tuple[bool, str]]:
    def holds(value: Value) -> tuple[bool, str]:
        own, rest = value(method, "w8a8", metric), {other: value(other, "w8a8", metric) for other in others}
        best = max(rest, key=rest.get)
        return own > rest[best], f"{own:.4f}, next {best} {rest[best]:.4f}"

    return holds


def _average_beats_dynamic(value: Value) -> tuple[bool, str]:
    gains = [
        value(method, "waverageaaverage", metric) - value("dynamic", "waverageaaverage", metric)
        for method in ("asq", "tsq_tsw")
        for metric in VQA
    ]
    return min(gains) > 0, "gain " + _listed(gains)


def _listed(points: list[float]) -> str:
    return ", ".join(f"{number:z.1f}" for number in points)  # z: no minus before zero


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
        _best("tsq_tsw", "clipsim", ("dynamic", "cw_tw", "tsw", "asq")),
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
        _average_beats_dynamic,
    ),
    Claim(
        "ranges_clipsim",
        "A range for each step has the highest CLIPSIM of all numbers of time ranges.",
        ("table4", "table5"),
        _best("tsq_tsw", "clipsim", RANGES),
    ),
    Claim(
        "ranges_vqa",
        "One range for all steps (ASQ) has the highest VQA-a of all numbers of time ranges.",
        ("table4", "table5"),
        _best("asq", "vqa_a", ("tsq_2tr", "tsq_4tr", "tsq_10tr", "tsq_tsw")),
    ),
]
GOALS = [
    Goal(
        f"{bits}_3db",
        f"At {bits.upper()} {PLUS} has with every seed 3 dB more PSNR than the better of {' and '.join(PLAIN)}.",
        _beats(bits, "psnr", PLAIN, 3),
    )
    for bits in ("w4a8", "w6a6")
] + [
    Goal(
        "w4a4_clipsim",
        f"At W4A4 {PLUS} has with every seed a higher CLIPSIM than every dynamic recipe ({', '.join(DYNAMIC)}).",
        _beats("w4a4", "clipsim", DYNAMIC, 0),
    )
]
