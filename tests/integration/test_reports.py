"""The stages that read finished runs, or only measure: benchmark and tabulate."""

import json
import shutil
import statistics
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from vdq.stages import benchmark
from vdq.stages.tabulate import GRID_FRAMES


@pytest.fixture
def bed(finished, tmp_path):
    """The finished runs in a folder of their own."""
    shutil.copytree(finished.runs, tmp_path / "runs", ignore=shutil.ignore_patterns("dynamic_*", "asq*", "tsw*"))
    return replace(finished, runs=tmp_path / "runs")


def test_benchmark_writes_the_ratio_of_times(bed, monkeypatch, work, capsys):
    monkeypatch.setattr(benchmark, "ROUNDS", 3)
    folder = bed.run("stages=[benchmark]", "quant=tsq_tsw")
    assert work == []  # the parameters of the finished run are there
    result = json.loads((folder / "benchmark.json").read_text())
    assert (result["quant"], result["bits"], result["prompts"], result["steps"]) == ("tsq_tsw", "w8a8", 2, 2)
    assert result["backend"] == "fake_quant (simulated)" and result["threads"] >= 1
    full, quantized = result["seconds"]["full_precision"], result["seconds"]["tsq_tsw"]
    assert len(full) == len(quantized) == 3 and min(full + quantized) > 0
    ratios = [q / f for q, f in zip(quantized, full, strict=True)]
    assert result["ratio"]["median"] == pytest.approx(statistics.median(ratios))
    assert min(ratios) <= result["ratio"]["quartiles"][0] or len(ratios) < 4
    assert f"ratio {result['ratio']['median']:.3f}" in capsys.readouterr().out


def test_benchmark_prepares_what_is_missing(testbed, monkeypatch, work):
    monkeypatch.setattr(benchmark, "ROUNDS", 2)
    folder = testbed.run("stages=[benchmark]", "quant=dynamic")
    assert work == [] and (folder / "benchmark.json").exists() and (folder / "quant_state.safetensors").exists()
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("override", ["quant=fp16", "trainer=gpu"])
def test_benchmark_refuses_what_it_cannot_compare(testbed, override):
    with pytest.raises(ValueError, match="cannot be benchmarked"):
        testbed.run("stages=[benchmark]", override)


def test_tabulate_writes_table_grid_and_cost(bed, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ROUNDS", 2)
    run = bed.run("stages=[benchmark]", "quant=tsq_tsw")
    result = json.loads((run / "result.json").read_text())
    others = {"reference": "other", "changed": "momentum=0.3", "metrics": "other", "alpha": 0.9}
    for number, (field, value) in enumerate(others.items()):
        folder = bed.runs / f"other{number}"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({**result, "signature": f"other{number}", field: value}))

    bed.run("stages=[tabulate]", "quant=tsq_tsw")
    results = bed.runs / "results" / "shapes"
    table = pd.read_csv(results / "runs_shapes.csv").set_index("quant")
    assert "other" not in " ".join(table["signature"])  # not comparable: prompts, recipe, judge or alpha differ
    assert table.loc["tsq_tsw", "signature"] == result["signature"]
    assert table.loc["tsq_tsw", "clipsim"] == pytest.approx(result["clipsim"])
    assert pd.isna(table.loc["fp16", "latent_rel_l2"])
    text = (results / "runs_shapes.md").read_text()
    assert f"`{result['signature']}`" in text and "2 prompts, model shapes" in text and "↑" in text
    assert "tsq_tsw" in capsys.readouterr().out

    with Image.open(results / "samples_shapes.png") as grid:
        assert grid.width >= 2 * GRID_FRAMES * 64 and grid.height >= 64  # the two videos side by side
        assert grid.convert("L").getextrema()[0] < 200  # not blank
    assert "tsq_tsw" in (results / "table6.md").read_text() and "2259" in (results / "table6.md").read_text()
    row = pd.read_csv(results / "table1.csv").set_index("method").loc["tsq_tsw"]
    assert row["run"] == result["signature"] and row["clipsim"] == pytest.approx(result["clipsim"])
    assert not (results / "table2.md").exists()  # no run of it
    for name in ("figure2", "figure3"):
        with Image.open(results / f"{name}.png") as figure:
            assert figure.convert("L").getextrema()[0] < 200


def test_tabulate_without_runs_says_what_to_do(testbed):
    with pytest.raises(ValueError, match=f"paths.runs={testbed.runs} holds no finished run"):
        testbed.run("stages=[tabulate]")
