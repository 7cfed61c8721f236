"""Columns, legend and figure of costs, with made-up rows in them."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vdq.reports import quality_figures
from vdq.reports.costs import cost_columns, cost_note
from vdq.reports.quality_figures import cost_figure

FULL = {"method": "fp16", "bits": "full", "kind": "full precision", "mean_act_bits": 16.0, "size_mb": 8.0}
FULL |= {"size_mb_fp16": 4.0, "integer_gmacs": 0.0, "float_gmacs": 0.5, "bit_tops": 0.128}


def quantized(method, bits, kind, psnr, size, **fields):
    row = {"method": method, "bits": bits, "kind": kind, "psnr": psnr, "size_mb": size, "size_mb_fp16": 4.0}
    row |= {"mean_act_bits": 4.25, "bits_per_weight": 4.5, "integer_gmacs": 0.5, "float_gmacs": 0.0, "bit_tops": 0.01}
    return row | fields


@pytest.fixture
def table() -> pd.DataFrame:
    branched = {"bits_per_weight": 9.25, "float_gmacs": 0.05, "bit_tops": 0.0241}
    return pd.DataFrame(
        [
            FULL,
            quantized("dynamic", "w8a8", "dynamic", 41.0, 2.9),
            quantized("asq", "w8a8", "static", 37.0, 3.0),
            quantized("tsq_tsw", "w8a8", "static", 43.0, 44.0),
            quantized("static_plus", "w4a8", "static", 35.0, 3.25, **branched),
            quantized("static_plus", "w8a8", "static", 45.0, 4.25, **branched | {"bits_per_weight": 13.25}),
        ]
    )


def test_columns_tell_what_bit_widths_do_not(table):
    shown = cost_columns(table)
    assert [column[0] for column in shown.values()] == ["16.00", "–", "all", "128.0", "8.00"]
    assert [column[4] for column in shown.values()] == ["4.25", "9.25", "10.0%", "24.1", "3.25"]


def test_runs_that_recorded_no_costs_have_none(table):
    old = table.drop(columns=["bits_per_weight", "integer_gmacs", "float_gmacs", "bit_tops", "size_mb_fp16"])
    assert [column[4] for column in cost_columns(old).values()] == ["4.25", "–", "–", "–", "3.25"]
    assert cost_note(old) == ""


def test_legend_names_both_references_and_what_a_branch_costs(table):
    note = " ".join(cost_note(table).split())
    assert "itself has 8.00 MB in fp32 and 4.00 MB in fp16" in note and "counts integers alone" in note
    assert "**static_plus is not W4 on a model this small.** At w4a8 its layers store 9.2 bits a weight" in note
    assert "multiply 10.0% as much in floating point" in note
    assert note.endswith(
        "It takes 3.25 MB for 35.0 dB; the best other method of no more bytes is dynamic at w8a8 (dynamic, 2.90 MB, "
        "41.0 dB), the best static one asq at w8a8 (static, 3.00 MB, 37.0 dB)."
    )
    plain = cost_note(table[table["method"] != "static_plus"])
    assert "in fp16." in plain and "static_plus" not in plain


def test_figure_has_a_point_a_row_at_its_costs(table, tmp_path, monkeypatch):
    drawn, old = [], pd.DataFrame([quantized("old", "w8a8", "static", 1.0, 1.0, bit_tops=None)])
    monkeypatch.setattr(quality_figures, "save", lambda figure, path: drawn.append(figure))
    cost_figure(pd.concat([table, old]), tmp_path)
    bytes_, operations = drawn[0].axes
    rows = table.dropna(subset="psnr")
    for axis, expected in ((bytes_, rows["size_mb"]), (operations, 1000 * rows["bit_tops"])):
        points = [point for line in axis.lines if line.get_marker() in ("o", "^") for point in line.get_xydata()]
        np.testing.assert_allclose(sorted(points, key=tuple), sorted(zip(expected, rows["psnr"], strict=True)))
    dashed = [[line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"] for axis in drawn[0].axes]
    assert dashed == [[8.0, 4.0], [128.0]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["asq", "dynamic", "static_plus", "tsq_tsw"]


def test_figure_is_a_picture(table, tmp_path):
    cost_figure(table, tmp_path / "costs.png")
    assert Image.open(tmp_path / "costs.png").width > 800
