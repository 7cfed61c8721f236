"""Sizes of published models against arithmetic on their dimensions."""

import pytest

from vdq.commands.sizes_models import alike, beside, sizes, table
from vdq.quant.report import ModelSize

# Wan 2.1, 1.3 B, as its configuration is published: 30 blocks of width 1536 with feed-forward networks of 8960, each of
# eight square linears of attention and two of the feed-forward network; 50 steps.
BLOCKS, WIDTH, HIDDEN, STEPS = 30, 1536, 8960, 50
QUANTIZED = BLOCKS * (8 * WIDTH**2 + 2 * WIDTH * HIDDEN)
OUTPUTS = BLOCKS * (8 * WIDTH + WIDTH + HIDDEN)


@pytest.mark.slow
def test_wan_under_every_method():
    found = sizes("wan2_1_1_3b")
    plain, per_step = found["w8a8"]["cw_tw"], found["w8a8"]["tsq_tsw"]
    assert plain.elements * 1e6 == pytest.approx(QUANTIZED)
    assert plain.weights * 1e6 == pytest.approx(QUANTIZED) and found["w4a8"]["cw_tw"].weights == plain.weights / 2
    assert plain.half == pytest.approx(2838, abs=1)  # 1.419 billion parameters
    assert per_step.all_codes * 1e6 == pytest.approx(STEPS * QUANTIZED) and per_step.weights == 0
    assert per_step.sources * 1e6 == pytest.approx(2 * QUANTIZED)
    grids = 4 * 2 * STEPS * OUTPUTS
    factors = 4 * STEPS * BLOCKS * (9 * WIDTH + HIDDEN)
    assert per_step.parameters * 1e6 == pytest.approx(grids + factors, rel=0.01)
    shown = table({"wan2_1_1_3b": found["w8a8"]}).iloc[0]
    assert shown["half precision"] == "2.84" and shown["codes of all sets, at most"] == "69.6"


def size(total: float) -> ModelSize:
    return ModelSize(total, 0, 0, 0, 0, full_precision=0, original=0, half=3000, elements=1, all_codes=2 * total)


def test_methods_of_about_one_size_share_a_column():
    totals = {"a": {"x": 100.0, "y": 100.9, "z": 300.0}, "b": {"x": 10.0, "y": 10.05, "z": 10.05}}
    assert alike(totals) == [["x", "y"], ["z"]]
    frame = table({name: {quant: size(total) for quant, total in of.items()} for name, of in totals.items()})
    assert frame.columns.tolist() == ["model", "half precision", "x, y", "z", "codes of all sets, at most"]
    assert frame["x, y"].tolist() == ["0.10 (59.46, 29.73)", "0.01 (597.01, 298.51)"]


def test_a_size_stands_beside_fp32_and_half_precision():
    assert beside(1500, size(1500)) == "1.50 (4.00, 2.00)"
