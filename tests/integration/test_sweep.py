"""A sweep: one process, one calibration, one reference, one table at its end; and nothing of W&B with logger=csv."""

import os
from pathlib import Path

import pytest

SPY = """
import os, pathlib
pathlib.Path(os.environ["SPY"]).touch()
raise ImportError("not wanted here")
"""


@pytest.fixture
def imported(tmp_path, monkeypatch) -> Path:
    """A file that exists once a new process has tried to import wandb."""
    package = tmp_path / "spy" / "wandb.py"
    package.parent.mkdir()
    package.write_text(SPY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("SPY", str(tmp_path / "imported"))
    return tmp_path / "imported"


def last_table(output: str) -> list[list[str]]:
    rows = output[output.rindex("| method") :].splitlines()
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")]


def test_sweep_ends_in_one_table(testbed, imported):
    process = testbed.start("quant=cw_tw,tsw", "bits=w8a8,w4a4", "tabulate=true", multirun=True)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    header, _, *rows = last_table(output)
    assert [row[:2] for row in rows] == [
        ["fp16", "full"],
        ["cw_tw", "w8a8"],
        ["cw_tw", "w4a4"],
        ["tsw", "w8a8"],
        ["tsw", "w4a4"],
    ]
    assert header[-1] == "run"
    folders = {path.parent.name.rpartition("_")[2] for path in testbed.runs.glob("*/result.json")}
    assert {row[-1] for row in rows} == folders and len(folders) == 5
    assert output.count("calibrate: statistics of 10 prompts written") == 1
    assert len(list((testbed.runs / "cache").glob("stats_*.safetensors"))) == 1
    sampled = [line for line in output.splitlines() if line.startswith("sample: ") and "2 videos in" in line]
    assert len(sampled) == 5 and sum("/fp16_" in line for line in sampled) == 1
    assert "Callback" not in output and "Traceback" not in output  # Hydra only warns of a failing callback
    assert not imported.exists()
    results = testbed.runs / "results"
    assert "`" + rows[1][-1] + "`" in (results / "shapes" / "table1.md").read_text()
    assert all((root / "gallery" / "index.html").is_file() for root in (results, testbed.runs))


@pytest.mark.slow
def test_refused_run_stops_neither_the_sweep_nor_its_table(testbed):
    process = testbed.start("quant=tsw", "quant.num_time_ranges=3,per_step", multirun=True)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 1
    assert "error: num_time_ranges=3 must be in 1..2, the denoising steps" in output and "Traceback" not in output
    assert [row[0] for row in last_table(output)[2:]] == ["fp16", "tsw"]
