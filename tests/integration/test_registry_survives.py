"""Two sweeps at once, kill -9, a full disk and damaged files neither lose nor duplicate a row of the registry."""

import errno
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from vdq.tracking import runs

ROOT = Path(__file__).parents[2]
SWEEP = ("quant=cw_tw,tsw",)
PATIENCE = 1800  # seconds; ten are enough on an idle machine
WHEN = ["finished", "sampling_seconds", "calibration_seconds", "quantize_seconds", "folder"]  # differ from run to run


def start(bed, *overrides: str, before: str = "") -> subprocess.Popen[str]:
    """The sweep in a process group of its own; ``before`` are shell commands that prepare its mounts."""
    command = [sys.executable, "run.py", "-m", *bed.overrides, *SWEEP, *overrides]
    if before:
        command = ["unshare", "--mount", "--map-root-user", "sh", "-c", before, "sh", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


def kill(process: subprocess.Popen[str]) -> str:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it had ended
        pass
    return process.communicate(timeout=PATIENCE)[0]


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0 and "Traceback" not in output, output
    return outputs


def assert_same_rows(folder: Path, expected: Path) -> None:
    """Each run once, and their values up to the rounding of sums in another order."""
    found, wanted = (runs(path).sort_values("signature", ignore_index=True) for path in (folder, expected))
    assert found["signature"].tolist() == wanted["signature"].tolist() and found["signature"].is_unique
    pd.testing.assert_frame_equal(found.drop(columns=WHEN), wanted.drop(columns=WHEN), rtol=1e-3, check_like=True)


def leftovers(folder: Path) -> list[Path]:
    """Half-written files: this program's have the ending part, and those of libraries have hidden names as well."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def copied(bed, folder: Path):
    """The same runs in another folder, to be damaged."""
    shutil.copytree(bed.runs, folder / "runs")
    return replace(bed, runs=folder / "runs")


@pytest.fixture(scope="session")
def undisturbed(finished, tmp_path_factory: pytest.TempPathFactory):
    """The three rows of the sweep, from single runs that nothing interrupted."""
    bed = replace(finished, runs=tmp_path_factory.mktemp("undisturbed") / "runs")
    for method in ("cw_tw", "tsw"):
        bed.run(f"quant={method}")
    return bed


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write more than ``size`` bytes to any file of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_killed_sweep_goes_on_without_losing_or_repeating_a_row(testbed, undisturbed):
    process = start(testbed)
    deadline = time.monotonic() + PATIENCE
    while runs(testbed.runs).empty and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    output = kill(process)
    early = runs(testbed.runs)
    assert 1 <= len(early) < 3, output
    for method in ("cw_tw", "tsw"):
        testbed.run(f"quant={method}")
    assert_same_rows(testbed.runs, undisturbed.runs)
    late = runs(testbed.runs).set_index("signature")
    assert late.loc[early["signature"], "finished"].tolist() == early["finished"].tolist()  # not done again


@pytest.mark.slow
def test_killed_at_random_moments(testbed, undisturbed):
    moments = random.Random(0)
    started = time.monotonic()
    finish(start(replace(testbed, runs=testbed.runs.with_name("timed"))))
    whole = time.monotonic() - started
    for _ in range(4):
        process = start(testbed)
        try:
            process.wait(timeout=whole * moments.uniform(0.2, 1.0))
        except subprocess.TimeoutExpired:
            pass
        kill(process)
        assert len(runs(testbed.runs)) <= 3
    finish(start(testbed))
    assert_same_rows(testbed.runs, undisturbed.runs)
    assert_same_rows(testbed.runs, testbed.runs.with_name("timed"))


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(testbed, undisturbed):
    outputs = finish(*(start(testbed) for _ in range(2)))
    assert_same_rows(testbed.runs, undisturbed.runs)
    both = "".join(outputs)
    assert both.count("calibrate: statistics of 10 prompts written") == 1
    for name in runs(testbed.runs)["folder"]:
        assert both.count(f"sample: {name}: 2 videos in") == 1
    assert all(output.count("| method") == 3 for output in outputs)  # a table for each run and one at the end
    assert not leftovers(testbed.runs)


@pytest.mark.parametrize("full", ["cache/stats_*.safetensors", "tsq_tsw_*/quant_state.*", "tsq_tsw_*/samples/0000.*"])
def test_full_disk_ends_in_one_sentence_and_the_same_command_goes_on(finished, tmp_path, full):
    bed = copied(finished, tmp_path)
    folder = next(bed.runs.glob("tsq_tsw_w8a8_*"))
    path = next(bed.runs.glob(full))
    kept = folder / "quant_state.safetensors" if "samples" in full else None
    for file in [path, *(file for file in folder.rglob("*") if file.is_file() and file != kept)]:
        file.unlink(missing_ok=True)
    with (
        largest_file(100_000),
        pytest.raises(ValueError, match="cannot be written: .*; with more space the same command"),
    ):
        bed.run("quant=tsq_tsw")
    assert not path.exists() and not leftovers(bed.runs) and str(folder) not in set(runs(bed.runs)["folder"])
    bed.run("quant=tsq_tsw")
    assert_same_rows(bed.runs, finished.runs)


@pytest.mark.parametrize("name", ["per_video.csv", "metrics.json", "manifest.json", "result.json"])
def test_no_space_for_a_small_file(finished, tmp_path, monkeypatch, name):
    bed = copied(finished, tmp_path)
    folder = next(bed.runs.glob("tsq_tsw_w8a8_*"))
    (folder / "result.json").unlink()
    write_text = Path.write_text

    def full(path: Path, *arguments, **options):
        if name in path.name:
            write_text(path, "half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ValueError, match=f"{name} cannot be written: .*No space left on device; with more space"):
            bed.run("quant=tsq_tsw")
    assert not leftovers(bed.runs) and str(folder) not in set(runs(bed.runs)["folder"])
    bed.run("quant=tsq_tsw")
    assert_same_rows(bed.runs, finished.runs)


@pytest.mark.slow
def test_full_disk_from_the_command_line(testbed, undisturbed, tmp_path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "--map-root-user", "true"]).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    bed = replace(testbed, runs=disk / "runs")
    script = "\n".join(
        [
            f'mount -t tmpfs -o size=1m tmpfs "{disk}"',
            f'"$@"; echo "full: $?"; find "{disk}" -name ".*" ! -name .lock -type f | sed "s/^/left: /"',
            f'mount -o remount,size=200m "{disk}"; "$@"; echo "roomy: $?"; cp -r "{disk}/runs" "{copy}"',
        ]
    )
    output = start(bed, before=script).communicate(timeout=PATIENCE)[0]
    first, _, second = output.partition("full: 1\n")
    assert "cannot be written: No space left on device; with more space the same command goes on" in first, output
    assert "Traceback" not in output and "left: " not in output and second.endswith("roomy: 0\n"), output
    assert_same_rows(copy, undisturbed.runs)


DAMAGED = {
    "result.json": ["scoring"],
    "metrics.json": ["scoring"],
    "per_video.csv": ["scoring"],
    "sampling.json": ["sampling tsq_tsw"],
    "samples/0001.safetensors": ["sampling tsq_tsw"],
    "quant_state.safetensors": [],  # made from the statistics
    "../cache/stats_*.safetensors": ["calibrating"],
}


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
@pytest.mark.parametrize("pattern", list(DAMAGED))
def test_damage_to_a_finished_run_is_named_and_repaired(finished, tmp_path, work, caplog, pattern, damage):
    bed = copied(finished, tmp_path)
    folder = next(bed.runs.glob("tsq_tsw_w8a8_*"))
    path = next(bed.runs.glob(pattern[3:])) if ".." in pattern else folder / pattern
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"something else")
    with caplog.at_level(logging.WARNING, logger="vdq"):
        bed.run("quant=tsq_tsw")
    assert work == DAMAGED[pattern]
    assert f"{path} cannot be read" in caplog.text
    if path.suffix == ".safetensors":
        assert len(path.read_bytes()) == len(content)
    assert_same_rows(bed.runs, finished.runs)
