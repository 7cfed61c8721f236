"""Methods with several noises, from the runs to the table."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from vdq.commands import status


def test_table_of_two_noises(finished, tmp_path):
    shutil.copytree(finished.runs, tmp_path / "runs", ignore=shutil.ignore_patterns("dynamic_*", "asq*", "tsw*"))
    bed = replace(finished, runs=tmp_path / "runs")
    results = bed.runs / "results" / "shapes"
    bed.run("stages=[tabulate]")
    assert not (results / "neighbours.md").exists()  # one noise
    first = bed.run("quant=dynamic")
    for method in ("tsq_tsw", "dynamic"):
        bed.run(f"quant={method}", "seed=43")
    other = bed.run("quant=tsq_tsw", "quant.momentum=0.5", "seed=43")
    bed.run("stages=[tabulate]")
    table = pd.read_csv(results / "neighbours.csv").set_index("method")
    assert table["seeds"].to_dict() == {"fp16": 2, "tsq_tsw": 2, "dynamic": 2}
    assert json.loads((other / "result.json").read_text())["signature"] not in table.loc["tsq_tsw", "runs"]
    dynamic = json.loads((first / "result.json").read_text())
    assert table.loc["dynamic", "psnr_42"] == pytest.approx(dynamic["psnr"])
    assert dynamic["signature"] in table.loc["dynamic", "runs"].split()
    assert table["calibration_prompts"].to_dict() == {"fp16": 0, "tsq_tsw": 10, "dynamic": 0}
    assert table.loc["tsq_tsw", "calibration_seconds"] > 0 and table.loc["dynamic", "quantize_seconds"] > 0
    assert "not testable" in (results / "neighbours.md").read_text()
    before = {path: path.read_bytes() for path in (bed.runs / "results").rglob("*") if path.is_file()}
    bed.run("stages=[tabulate]")
    assert {path: path.read_bytes() for path in (bed.runs / "results").rglob("*") if path.is_file()} == before


def test_every_method_and_seed_is_wanted(finished):
    table = status.progress(["neighbours"], [*finished.overrides, "sampler.steps=20"])  # which 10 time ranges divide
    quantized = sum(path.stem != "fp16" for path in status.CONF.glob("quant/*.yaml"))
    assert table.loc[0, "runs"] == 3 * (1 + 5 * quantized)
