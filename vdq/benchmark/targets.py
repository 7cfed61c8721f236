"""How fast this project wants to be, and whether it is: medians of the slowest static method and the worst shape."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vdq.benchmark.gemm import U8_GEMM
from vdq.benchmark.plan import BLOCK, LINEAR, SAMPLER
from vdq.benchmark.record import DYNAMIC
from vdq.benchmark.rounds import FULL, INTEGER, PEER

PEERS = "the fastest peer"


@dataclass(frozen=True)
class Target:
    """At least `least` times faster than `over`, on a device type: of the row `row`, or of every static method. `case`
    is how the cases' keys begin.
    """

    words: str
    part: str
    case: str
    least: float
    over: str = FULL
    row: str | None = None
    device: str = "cpu"


TARGETS = (
    Target("GEMM with fused u8 output", LINEAR, "linear", 3.8, row=U8_GEMM),
    Target("whole static linear", LINEAR, "linear", 2.8),
    Target("fc1-GELU-fc2, static", LINEAR, "chain", 3.8),
    Target("XL/2 block, static", BLOCK, "block", 2.5),
    Target("XL/2 block, static over our dynamic", BLOCK, "block", 1.2, over=DYNAMIC),
    Target("XL/2 block, static over every peer", BLOCK, "block", 1.2, over=PEERS),
    Target("XL/2 sampler, static over fp16", SAMPLER, "sampler", 1.6, device="cuda"),
    Target("XL/2 sampler, static over our dynamic", SAMPLER, "sampler", 1.15, over=DYNAMIC, device="cuda"),
)


def verdicts(part: str, device: str, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a target of the part on that device; `value` is None where something it needs was not measured."""
    return [_verdict(target, cases) for target in TARGETS if (target.part, target.device) == (part, device)]


def _verdict(target: Target, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = [
        (_ratio(case, other, row), f"{row['name']}, {case['title']}")
        for case in cases
        if case["key"].startswith(target.case)
        for row in case["rows"]
        for other in _others(target.over, case)
        if _meant(target, row)
    ]
    value, where = min(found, default=(None, ""))
    verdict = {"target": target.words, "over": target.over, "least": target.least, "value": value, "where": where}
    return verdict | {"reached": None if value is None else value >= target.least}


def _meant(target: Target, row: dict[str, Any]) -> bool:
    return row["name"] == target.row if target.row else row["kind"] == INTEGER and row.get("static", False)


def _others(over: str, case: dict[str, Any]) -> list[dict[str, Any]]:
    if over == PEERS:
        return [row for row in case["rows"] if row["kind"] == PEER and row.get("linears") and not row.get("note")]
    return [row for row in case["rows"] if row["name"] == over]


def _ratio(case: dict[str, Any], above: dict[str, Any], below: dict[str, Any]) -> float:
    """The median of the ratios of two rows' times within the rounds."""
    return statistics.median(above["all_seconds"][i] / below["all_seconds"][i] for i in case["rounds_used"])
