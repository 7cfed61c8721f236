"""The alpha that is chosen, against values written out here."""

import pandas as pd
from PIL import Image

from vdq.tracking.alpha import best, curves, pivot

GRID = pd.DataFrame(
    [
        {"quant": quant, "bits": bits, "alpha": alpha, "clipsim": value, "psnr": 30 + alpha}
        for quant, bits, values in (
            ("asq", "w8a8", (0.1, 0.3, 0.2)),
            ("asq", "w4a8", (0.1, 0.2, 0.5)),
            ("tsq", "w8a8", (3, 3, 1)),
        )
        for alpha, value in zip((0.1, 0.5, 0.9), values, strict=True)
    ]
)


def test_highest_mean_over_bit_widths_and_the_smaller_of_equals():
    assert best(GRID) == {"asq": 0.9, "tsq": 0.1}
    assert best(GRID, "psnr") == {"asq": 0.9, "tsq": 0.9}


def test_table_marks_the_best_of_each_row():
    lines = pivot(GRID, "clipsim").splitlines()
    assert lines[0].replace(" ", "") == "|quant|bits|0.1|0.5|0.9|"
    assert any("w4a8" in line and "**0.5**" in line for line in lines)


def test_curves_are_drawn(tmp_path):
    curves(GRID, {"clipsim": "CLIPSIM", "psnr": "PSNR"}, tmp_path / "alpha.png")
    with Image.open(tmp_path / "alpha.png") as image:
        assert image.width > 900 and image.convert("L").getextrema() == (0, 255)
