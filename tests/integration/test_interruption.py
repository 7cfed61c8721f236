"""Whatever stops a run, the next one finishes it, and takes nothing half-done for finished."""

import json
import logging
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from vdq.tasks.generation import Generation
from vdq.tracking import runs
from vdq.tracking.csv import CsvTracker

PROMPTS = 30  # enough that a signal after the first still finds the run at work


def samples(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "samples").glob("*.safetensors")}


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the indices of the prompts that are sampled from now on."""
    indices: list[int] = []
    original = Generation.sample

    def spy(self: Generation, denoiser: nn.Module, numbers: list[int], prompts: list[str]):
        indices.extend(numbers)
        return original(self, denoiser, numbers, prompts)

    monkeypatch.setattr(Generation, "sample", spy)
    return indices


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_stopped_while_sampling(testbed, finished, sampled, assert_same_latents, number):
    bed = replace(testbed, settings=("sampler.steps=2", "logger=csv", f"dataset.num_prompts={PROMPTS}", "batch_size=1"))
    command = ("quant=fp16", "stages=[sample,evaluate]")
    folder = bed.experiment(*command).folder
    process = bed.start(*command)
    deadline = time.monotonic() + 300
    while not samples(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    done = samples(folder)
    assert 0 < len(done) < PROMPTS, output
    if number == signal.SIGINT:
        assert process.returncode == 1
        assert "\nstopped; the same command goes on from here\n" in output and "Traceback" not in output

    assert runs(bed.runs).empty
    bed.run(*command)
    assert len(done) + len(sampled) == PROMPTS
    assert not {f"{index:04d}.safetensors" for index in sampled} & done.keys()
    assert done.items() <= samples(folder).items() and len(samples(folder)) == PROMPTS

    first = next(finished.runs.glob("fp16_*"))  # two of these prompts, never interrupted
    for path in sorted((folder / "samples").glob("*"))[2:]:
        path.unlink()
    assert_same_latents(folder, first)


def test_half_written_files_count_for_nothing(finished, tmp_path, sampled, work):
    bed = copied(finished, tmp_path)
    folder = next(bed.runs.glob("fp16_*"))
    (folder / "result.json").rename(folder / ".result.json.1.part")
    (folder / "samples" / "0001.safetensors").rename(folder / "samples" / ".0001.safetensors.1.part")
    assert folder.name not in {Path(path).name for path in runs(bed.runs)["folder"]}
    bed.run("quant=fp16")
    assert sampled == [1]
    assert work == ["sampling fp16", "scoring"]


def test_samples_without_their_record_are_not_finished(finished, tmp_path, sampled):
    """The record of what sampled them is written after the last one."""
    bed = copied(finished, tmp_path)
    folder = next(bed.runs.glob("fp16_*"))
    (folder / "sampling.json").unlink()
    (folder / "result.json").unlink()
    bed.run("quant=fp16")
    assert sampled == [1]
    assert json.loads((folder / "manifest.json").read_text())["execution"]["dtype"] == "float32"


@pytest.mark.parametrize("content", ['{"quant": "tsq_ts', "[]"])
def test_damaged_result_is_computed_again_with_a_warning(finished, tmp_path, work, caplog, content):
    bed = copied(finished, tmp_path)
    folder = next(bed.runs.glob("tsq_tsw_w8a8_*"))
    intact = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(content)
    assert str(folder) not in set(runs(bed.runs)["folder"])
    with caplog.at_level(logging.WARNING, logger="vdq"):
        bed.run("quant=tsq_tsw")
    assert work == ["scoring"]
    assert f"{folder / 'result.json'} cannot be read" in caplog.text
    result = json.loads((folder / "result.json").read_text())
    assert result | {"finished": None} == intact | {"finished": None}


DAMAGED = {
    "samples/0001.safetensors": ["sampling tsq_tsw", "scoring"],
    "quant_state.safetensors": ["sampling tsq_tsw", "scoring"],
    "../cache/stats_*.safetensors": ["calibrating", "sampling tsq_tsw", "scoring"],
}


@pytest.mark.parametrize(
    ("pattern", "damage"), [*((pattern, "truncated") for pattern in DAMAGED), ("samples/0001.safetensors", "foreign")]
)
def test_damaged_artefact_is_made_again_with_a_warning(finished, tmp_path, work, caplog, pattern, damage):
    bed = copied(finished, tmp_path)
    folder = next(bed.runs.glob("tsq_tsw_w8a8_*"))
    path = next(folder.glob(pattern)) if ".." not in pattern else next(bed.runs.glob(pattern[3:]))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"something else")
    (folder / "result.json").unlink()
    if not pattern.startswith("samples"):
        (folder / "samples" / "0000.safetensors").unlink()
    if pattern.startswith(".."):
        (folder / "quant_state.safetensors").unlink()
    with caplog.at_level(logging.WARNING, logger="vdq"):
        bed.run("quant=tsq_tsw")
    assert work == DAMAGED[pattern]
    assert "cannot be read" in caplog.text and "made again" in caplog.text
    assert len(path.read_bytes()) == len(content)


def copied(bed, folder: Path):
    """The same runs in another folder, to be damaged."""
    shutil.copytree(bed.runs, folder / "runs")
    return replace(bed, runs=folder / "runs")


def test_a_run_that_cannot_be_logged_is_finished_and_logged_by_the_same_command(
    finished, tmp_path, caplog, monkeypatch
):
    """Results come first: a tracker without a network costs neither the result nor the end of the command."""
    bed = copied(finished, tmp_path)
    folder = next(bed.runs.glob("tsq_tsw_w8a8_*"))
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "csv")

    def log(*_, **__):
        raise ConnectionError("no network")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="vdq"):
        patch.setattr(CsvTracker, "log", log)
        bed.run("quant=tsq_tsw")
    assert (folder / "result.json").exists() and "could not be logged (ConnectionError: no network)" in caplog.text
    assert not (folder / "csv").exists()
    bed.run("quant=tsq_tsw")
    assert (folder / "csv" / "metrics.csv").exists() and not (folder / "not_logged.txt").exists()
