"""What was measured, as JSON can hold it: one row a contender, with its ratios to the others of its case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vdq.benchmark.rounds import FULL, INTEGER, SIMULATED, Contender, Round, disturbed, ratio, summary, used
from vdq.benchmark.work import Peaks, Work

DYNAMIC = "dynamic"
DYNAMICS = {INTEGER: DYNAMIC, SIMULATED: f"{DYNAMIC}, simulated"}


def case_record(
    title: str,
    contenders: Sequence[Contender],
    rounds: Sequence[Round],
    *,
    limit: float,
    work: Work,
    peaks: Peaks,
    **facts: Any,
) -> dict[str, Any]:
    """The record of one case. `speedup` is over full precision, `over_dynamic` over the dynamic method of the same
    kind, `over_baseline` over the contender's own baseline; `floor` is the share of the arithmetic floor, 1 the fastest
    this machine could be.
    """
    kept = used(rounds, limit)
    return {
        "title": title,
        **facts,
        "work": work._asdict(),
        "floor_seconds": {
            "full": peaks.floor(work, integer=False),
            "integer": peaks.floor(work, integer=True),
        },
        "rounds": len(rounds),
        "rounds_used": [number for number, round_ in enumerate(rounds) if round_ in kept],
        "rounds_disturbed": sum(disturbed(round_, limit) for round_ in rounds),
        "foreign": [round_.foreign for round_ in rounds],
        "attempts": [round_.attempts for round_ in rounds],
        "rows": [_row(contender, contenders, rounds, kept, work, peaks) for contender in contenders],
    }


def _row(
    contender: Contender,
    contenders: Sequence[Contender],
    rounds: Sequence[Round],
    kept: Sequence[Round],
    work: Work,
    peaks: Peaks,
) -> dict[str, Any]:
    names = {other.name for other in contenders}
    seconds = summary([round_.seconds[contender.name] for round_ in kept])
    row = {"name": contender.name, "kind": contender.kind, "computes": contender.computes, **contender.facts}
    row |= {"seconds": asdict(seconds), "floor": peaks.floor(work, integer=contender.integer) / seconds.median}
    compared = {"speedup": FULL, "over_dynamic": DYNAMICS.get(contender.kind), "over_baseline": contender.baseline}
    for field, other in compared.items():
        if other in names and other != contender.name:
            row[field] = asdict(ratio(kept, other, contender.name))
    if contender.baseline in names:
        row["baseline"] = contender.baseline
    return row | {"all_seconds": [round_.seconds[contender.name] for round_ in rounds]}
