"""What was asked for, decided by the slowest static method, the worst shape and the fastest valid peer."""

import pytest

from vdq.benchmark.record import case_record
from vdq.benchmark.rounds import FULL, INTEGER, PEER, Contender, Round
from vdq.benchmark.targets import verdicts
from vdq.benchmark.work import Peaks, Work

PEAKS = Peaks(full=100.0, integer=400.0, full_kernel="mm", integer_kernel="int")


def row(name, kind, **facts):
    return Contender(name, kind, "", lambda _: None, facts=facts)


CONTENDERS = [
    row(FULL, FULL),
    row("dynamic", INTEGER, static=False),
    row("asq", INTEGER, static=True),
    row("tsq_tsw", INTEGER, static=True),
    row("quick but wrong", PEER, linears=8, note="wrong result"),
    row("quick but fp32", PEER, linears=0),
    row("peer", PEER, linears=8),
]
SECONDS = [10.0, 5.0, 3.0, 4.0, 1.0, 1.0, 5.2]


def case(**facts):
    rounds = [
        Round({c.name: speed * s for c, s in zip(CONTENDERS, SECONDS, strict=True)}, share)
        for speed, share in ((1.0, 0.0), (3.0, 0.0), (2.0, 0.9))
    ]
    return case_record("a block", CONTENDERS, rounds, limit=0.1, work=Work(800, 50), peaks=PEAKS, **facts)


def test_targets_of_the_block():
    found = {verdict["target"]: verdict for verdict in verdicts("block", "cpu", [case(key="block")])}
    against_full = found["XL/2 block, static"]
    assert against_full["value"] == pytest.approx(2.5) and against_full["reached"]  # at least
    assert against_full["where"] == "tsq_tsw, a block"
    assert found["XL/2 block, static over our dynamic"]["value"] == pytest.approx(1.25)
    assert found["XL/2 block, static over every peer"]["value"] == pytest.approx(1.3)


def test_what_was_not_measured_is_not_reached():
    found = verdicts("linear", "cpu", [case(key="linear_2x2")])
    assert {verdict["target"]: verdict["reached"] for verdict in found} == {
        "GEMM with fused u8 output": None,
        "whole static linear": False,
        "fc1-GELU-fc2, static": None,
    }
    assert not verdicts("block", "cuda", [case(key="block")])


def test_rows_of_a_case():
    content = case(key="block")
    assert content["rounds_used"] == [0, 1] and content["rounds_disturbed"] == 1
    assert content["floor_seconds"] == {"full": 8.5, "integer": 2.5}
    rows = {row["name"]: row for row in content["rows"]}
    assert rows["asq"]["seconds"]["median"] == 6.0 and rows["asq"]["floor"] == pytest.approx(2.5 / 6)
    assert rows[FULL]["floor"] == pytest.approx(8.5 / 20) and "speedup" not in rows[FULL]
    assert rows["asq"]["speedup"]["median"] == pytest.approx(10 / 3)
    assert rows["asq"]["over_dynamic"]["median"] == pytest.approx(5 / 3)
    assert "over_dynamic" not in rows["dynamic"] and "over_dynamic" not in rows["peer"]
    assert rows["asq"]["all_seconds"] == [3.0, 9.0, 6.0]
