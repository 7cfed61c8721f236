"""The alpha that is chosen, against values written out here."""

import numpy as np
import pandas as pd
from PIL import Image

from vdq.metrics.catalogue import CLIPSIM, PSNR
from vdq.reports.alpha import best, choose, curves, pivot, tied

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


def scored(alphas: dict[float, tuple[list[float], float]]) -> pd.DataFrame:
    """A grid of one method at two bit-widths: alpha -> CLIPSIM of the prompts at the first one, PSNR. At the second one
    every prompt is worth 1 less, which must not count as noise."""
    rows = [
        {"quant": "asq", "bits": bits, "alpha": alpha, "psnr": psnr, "scores": [score - less for score in scores]}
        for alpha, (scores, psnr) in alphas.items()
        for bits, less in (("w8a8", 0), ("w4a8", 1))
    ]
    return pd.DataFrame(rows).assign(clipsim=lambda table: table["scores"].map(np.mean))


def test_what_clipsim_cannot_tell_apart_is_chosen_by_psnr():
    grid = scored(
        {
            0.1: ([0.50, 0.70, 0.90, 0.80], 30),  # the best by CLIPSIM
            0.5: ([0.52, 0.66, 0.91, 0.79], 35),  # differs by noise (p = 0.5)
            0.9: ([0.40, 0.61, 0.79, 0.70], 40),  # worse on every prompt (p < 0.001)
        }
    )
    assert tied(grid) == {"asq": [0.1, 0.5]}
    assert choose(grid) == {"asq": 0.5} and best(grid) == {"asq": 0.1} and best(grid, "psnr") == {"asq": 0.9}


def test_equal_scores_tie():
    assert tied(scored({0.1: ([0.5, 0.7], 30), 0.5: ([0.5, 0.7], 35)})) == {"asq": [0.1, 0.5]}


def test_table_marks_the_best_of_each_row():
    lines = pivot(GRID, "clipsim").splitlines()
    assert lines[0].replace(" ", "") == "|quant|bits|0.1|0.5|0.9|"
    assert any("w4a8" in line and "**0.5**" in line for line in lines)


def test_curves_are_drawn(tmp_path):
    curves(GRID, (CLIPSIM, PSNR), tmp_path / "alpha.png")
    with Image.open(tmp_path / "alpha.png") as image:
        assert image.width > 900 and image.convert("L").getextrema() == (0, 255)
