"""The stages that read finished runs, or only measure: benchmark and tabulate."""

import json
import shutil
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vdq.commands.tabulate import GRID_FRAMES

# Of the block and of the machine's peak.
SMALL = [
    f"benchmark.{name}={value}"
    for name, value in {
        "frames": 2,
        "side": 4,
        "hidden_size": 32,
        "num_heads": 2,
        "caption_tokens": 6,
        "caption_channels": 16,
    }.items()
]


@pytest.fixture
def bed(finished, tmp_path):
    """The finished runs in a folder of their own."""
    shutil.copytree(finished.runs, tmp_path / "runs", ignore=shutil.ignore_patterns("dynamic_*", "asq*", "tsw*"))
    return replace(finished, runs=tmp_path / "runs")


def benchmarks(bed):
    """What the stage wrote, by part."""
    found = [json.loads(path.read_text()) for path in sorted((bed.runs / "benchmarks").glob("*.json"))]
    return {content["part"]: content for content in found}


def test_benchmark_of_one_method(bed, work, capsys):
    bed.run("stages=[benchmark]", "quant=tsq_tsw", "benchmark.rounds=3", *SMALL)
    assert work == []  # the parameters of the finished run are there
    content = benchmarks(bed)["sampler"]
    assert (content["bits"], content["model"], content["targets"]) == ("w8a8", "shapes", [])
    assert content["machine"]["device_type"] == "cpu" and content["machine"]["threads"] >= 1
    (case,) = content["cases"]
    assert (case["steps"], case["rounds"], case["videos"]) == (2, 3, None)
    full, quantized = case["rows"]
    assert (quantized["name"], quantized["computes"]) == ("tsq_tsw", "fake_quant (simulated)")
    assert len(full["all_seconds"]) == 3 and min(full["all_seconds"] + quantized["all_seconds"]) > 0
    used = [(full["all_seconds"][i], quantized["all_seconds"][i]) for i in case["rounds_used"]]
    assert quantized["speedup"]["median"] == pytest.approx(statistics.median(f / q for f, q in used))
    assert "tsq_tsw" in capsys.readouterr().out


def test_benchmark_prepares_what_is_missing(testbed, work):
    folder = testbed.run("stages=[benchmark]", "quant=dynamic", "benchmark.rounds=2", *SMALL)
    assert work == [] and (folder / "quant_state.safetensors").exists()
    assert not (folder / "result.json").exists()
    testbed.run("stages=[tabulate]", "quant=dynamic")  # a benchmark of no finished run
    results = testbed.runs / "results" / "shapes"
    assert "dynamic" in (results / "table6.md").read_text() and not (results / "runs_shapes.md").exists()


def test_everything_in_one_command(bed, monkeypatch):
    monkeypatch.setattr("vdq.benchmark.peers.find_spec", lambda name: None)
    settings = ("benchmark.peers=[onnxruntime_static]", "benchmark.rounds=2", "benchmark.videos=2", "batch_size=1")
    bed.run("experiment=table6", "stages=[benchmark]", *settings, *SMALL)
    found = benchmarks(bed)
    assert [case["key"] for case in found["linear"]["cases"]] == [
        "linear_32x32",
        "linear_32x128",
        "linear_128x32",
        "chain",
    ]
    assert "not installed; pip install" in found["block"]["skipped"]["onnxruntime_static"]
    (sampler,) = found["sampler"]["cases"]
    assert sampler["rounds"] == 2 and sampler["videos"] == 2  # a prompt a round
    rows = {row["name"]: row for row in sampler["rows"]}
    simulated = {f"{name}, simulated" for name in ("dynamic", "asq", "tsq_tsw")}
    assert rows.keys() == {"full precision", "dynamic", "asq", "asq_tsw", "tsq_tsw", *simulated}
    assert rows["asq"]["computes"].startswith("int8_cpu (integer")
    assert rows["tsq_tsw"]["weight_bytes"] == 2 * rows["asq_tsw"]["weight_bytes"] > 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["quant=fp16"], "quant=fp16 cannot be benchmarked"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"], "trainer.devices=2 cannot be benchmarked"),
        (["trainer.precision=64-true"], "trainer.precision=64-true cannot be benchmarked"),
        (["benchmark.integer=[fp16]"], "benchmark.integer has the unknown name fp16; allowed: asq"),
        (["benchmark.videos=3"], "benchmark.videos=3 must be at most 2"),
    ],
)
def test_benchmark_refuses_what_it_cannot_compare(testbed, overrides, words):
    with pytest.raises(ValueError, match=words):
        testbed.run("stages=[benchmark]", *overrides, *SMALL)


def test_tabulate_writes_table_grid_and_cost(bed, capsys, caplog):
    run = bed.run("stages=[benchmark]", "quant=tsq_tsw", "benchmark.rounds=2", *SMALL)
    result = json.loads((run / "result.json").read_text())
    others = {"reference": "other", "changed": "momentum=0.3", "metrics": "other", "alpha": 0.9}
    for number, (field, value) in enumerate(others.items()):
        folder = bed.runs / f"other{number}"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({**result, "signature": f"other{number}", field: value}))

    bed.run("stages=[tabulate]", "quant=tsq_tsw")
    results = bed.runs / "results" / "shapes"
    table = pd.read_csv(results / "runs_shapes.csv").set_index("quant")
    assert "other" not in " ".join(table["signature"])  # not comparable: prompts, method, judge or alpha differ
    assert table.loc["tsq_tsw", "signature"] == result["signature"]
    assert table.loc["tsq_tsw", "clipsim"] == pytest.approx(result["clipsim"])
    assert pd.isna(table.loc["fp16", "latent_rel_l2"])
    text = (results / "runs_shapes.md").read_text()
    assert f"`{result['signature']}`" in text and "2 prompts, model shapes" in text and "↑" in text
    assert "tsq_tsw" in capsys.readouterr().out

    with Image.open(results / "samples_shapes.png") as grid:
        assert grid.width >= 2 * GRID_FRAMES * 64 and grid.height >= 64  # the two videos side by side
        assert grid.convert("L").getextrema()[0] < 200  # not blank
        colors = np.asarray(grid.convert("RGB")).astype(int)
    assert ((colors[..., 0] == 255) & (colors[..., 1:] == 0).all(-1)).any()  # random weights follow no prompt
    assert "tsq_tsw" in (results / "table6.md").read_text() and "2259" in (results / "table6.md").read_text()
    row = pd.read_csv(results / "table1.csv").set_index("method").loc["tsq_tsw"]
    assert row["run"] == result["signature"] and row["clipsim"] == pytest.approx(result["clipsim"])
    assert not (results / "table2.md").exists()  # no run of it
    assert "figure2 has no rows of runs that are not there: dynamic w8a8, cw_tw w8a8, tsw w8a8, asq w8a8" in caplog.text
    for name in ("figure2", "figure3"):
        with Image.open(results / f"{name}.png") as figure:
            assert figure.convert("L").getextrema()[0] < 200


def test_tabulate_without_runs_says_what_to_do(testbed):
    with pytest.raises(ValueError, match=f"paths.runs={testbed.runs} holds no finished run"):
        testbed.run("stages=[tabulate]")
