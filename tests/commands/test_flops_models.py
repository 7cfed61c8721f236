"""Where the arithmetic of published models is, against numbers that were counted elsewhere."""

from pathlib import Path

import pytest

from vdq.benchmark.work import Shares
from vdq.commands.flops_models import counted, table

RESULT = Path(__file__).parents[2] / "results" / "flops_models.md"
# Tokens, TFLOP and the percentage of linears, of a prototype that was other code; Allegro's by a formula.
ELSEWHERE = {
    "wan2_1_1_3b": (32760, 283, 29),
    "wan2_1_14b": (32760, 1678, 47),
    "cogvideox_5b": (17550, 332, 51),
    "ltx_video": (7392, 37, 66),
    "hunyuan_video": (118800, 12069, 13),
    "latte": (16384, 34, 93),
    "opensora_v1_512": (16384, 24, 90),
    "allegro": (79200, 2239, 17),
}


def committed() -> dict[str, list[float]]:
    """The numbers of the committed table by model: tokens, TFLOP, percentages, limit."""
    lines = [line.strip("|").split("|") for line in RESULT.read_text().splitlines() if line.startswith("| ")]
    return {
        name.strip(): [float(cell.strip().replace(",", "").rstrip("%x")) for cell in cells]
        for name, *cells in lines
        if name.strip() != "model"
    }


def test_committed_numbers_are_those_counted_elsewhere():
    found = committed()
    assert found.keys() >= ELSEWHERE.keys()
    for name, (tokens, tflop, linears) in ELSEWHERE.items():
        assert found[name][0] == tokens, name
        assert found[name][1] == pytest.approx(tflop, rel=0.03), name
        assert found[name][2] == pytest.approx(linears, abs=3), name


def test_shares_and_limits_of_the_committed_table_fit_together():
    for name, (_, _, linears, attention, limit) in committed().items():
        assert linears + attention <= 101, name
        assert limit == pytest.approx(1 / (1 - linears / 200), abs=0.01), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ltx_video", "latte"])
def test_count_of_a_named_model(name):
    tokens, found = counted(name)
    assert (tokens, round(found.all / 1e12)) == ELSEWHERE[name][:2]


def test_row_of_a_model():
    shown = table({"some": (1500, Shares(3 * 10**12, 0.5, 0.25))}).iloc[0].to_dict()
    assert shown == {
        "model": "some",
        "tokens": "1,500",
        "TFLOP": "3",
        "linears": "50%",
        "attention": "25%",
        "at most": "1.33x",
    }
