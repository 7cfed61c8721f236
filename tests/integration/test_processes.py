"""Whatever ends the program ends its workers too."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = ("dataset.num_prompts=40", "batch_size=1", "logger=csv")  # until the first video; there are many
LONG = (*SHORT, "quant=fp16", "stages=[sample]")
START, END = 1800, 300  # seconds on a machine that is busy with other things; waiting ends when it may
KINDS = {
    "single": ("run.py", *LONG),
    "joblib": ("run.py", "-m", *LONG, "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "complete": ("-m", "vdq.commands.run_missing", "--jobs", "2", "table1", *SHORT),
    "ddp": ("run.py", *LONG, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def descendants(pid: int) -> dict[int, float]:
    psutil = pytest.importorskip("psutil")
    return {child.pid: child.create_time() for child in psutil.Process(pid).children(recursive=True)}


def alive(processes: dict[int, float]) -> list[str]:
    psutil = pytest.importorskip("psutil")
    found = []
    for pid, started in processes.items():
        try:
            process = psutil.Process(pid)
            if process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            pass
    # Trackers of multiprocessing's resources end when they have cleaned up; they compute nothing.
    return [command for command in found if "resource_tracker" not in command]


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts Python in a session of its own, of which nothing is left after the test; what it says is in log.txt."""
    with ExitStack() as end, (tmp_path / "log.txt").open("w") as log:

        def begin(*arguments: str) -> subprocess.Popen:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=hear_interrupts,
            )
            end.callback(kill_group, process.pid)
            return process

        yield begin


def hear_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=["Ctrl-C", "SIGTERM", "kill -9"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_worker_outlives_the_program(kind, number, start, tmp_path):
    if kind == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = start(*KINDS[kind], f"paths.runs={tmp_path}")
    said = (tmp_path / "log.txt").read_text
    deadline = time.monotonic() + START
    while not list(tmp_path.glob("*/samples/*.safetensors")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, said()
    workers = descendants(process.pid)
    assert len(alive(workers)) >= (0 if kind == "single" else 2), said()
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
    process.wait(timeout=END)
    deadline = time.monotonic() + END
    while alive(workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(workers) == [], said()
    if number != signal.SIGKILL:
        assert "the same command goes on from here" in said() and "Traceback" not in said(), said()
