"""Goals of blocks and drivers, from made-up times."""

from vdq.benchmark.record import case_record
from vdq.benchmark.rounds import FULL, INTEGER, SIMULATED, Contender, Round
from vdq.benchmark.work import Peaks, Work
from vdq.commands.speed_models import goals, page

PEAKS = Peaks(full=100.0, integer=400.0, full_kernel="mm", integer_kernel="int")
BLOCK = {(FULL, FULL): 8.0, ("asq", INTEGER): 4.0, ("asq, simulated", SIMULATED): 9.0}
BLOCK |= {("tsw, simulated", SIMULATED): 12.0, ("dynamic, simulated", SIMULATED): 80.0}
DRIVER = {(FULL, FULL): 1000.0, ("through this project", FULL): 1005.0}


def benchmark(part: str, times: dict[tuple[str, str], float]) -> dict:
    contenders = [Contender(name, kind, "words", lambda _: None) for name, kind in times]
    rounds = [Round({name: seconds for (name, _), seconds in times.items()}, share) for share in (0.2, 0.3, 0.9)]
    facts = {"key": part, "note": "", "work": Work(400, 100), "peaks": PEAKS, "limit": 1.0}
    case = case_record(f"The {part}", contenders, rounds, **facts)
    machine = {"device": "A CPU", "device_type": "cpu", "dtype": "fp32", "cpus": 2, "threads": 2, "torch": "2.14.1"}
    content = {"part": part, "signature": part, "model": "wan", "bits": "w8a8", "machine": machine, "cases": [case]}
    return content | {"peaks": PEAKS._asdict(), "skipped": {}, "targets": [], "measured": "2026-01-01"}


def test_slowest_static_simulation_and_the_driver_count():
    found = goals([benchmark("block", BLOCK), benchmark("driver", DRIVER)]).set_index("case")
    assert found.loc["The block", ["measured", "reached"]].tolist() == ["1.500", "no"]
    assert found.loc["The block", "ratio"].endswith("tsw")
    assert found.loc["The driver", ["measured", "reached", "others"]].tolist() == ["1.005", "yes", "30%"]


def test_a_block_without_simulation_has_no_goal():
    assert goals([benchmark("block", {(FULL, FULL): 8.0, ("asq", INTEGER): 4.0})]).empty


def test_page_has_goals_and_times():
    text = page([benchmark("driver", DRIVER)])
    assert "| The driver |" in text and "1.00x (1.00 to 1.00)" in text and "A CPU" in text
