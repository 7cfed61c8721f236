"""Whatever ends the program ends its workers too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONG = ("dataset.num_prompts=40", "sampler.steps=20", "logger=csv", "quant=fp16", "stages=[sample]", "batch_size=1")
KINDS = {
    "single": ("run.py", *LONG),
    "joblib": ("run.py", "-m", *LONG, "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "complete": ("-m", "vdq.commands.complete", "--jobs", "2", "table1", "dataset.num_prompts=40", "logger=csv"),
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


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=["Ctrl-C", "SIGTERM", "kill -9"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_worker_outlives_the_program(kind, number, tmp_path):
    if kind == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = [sys.executable, *KINDS[kind], f"paths.runs={tmp_path}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=True)
    said = (tmp_path / "log.txt").read_text
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("*/samples/*.safetensors")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, said()
    workers = descendants(process.pid)
    assert len(alive(workers)) >= (0 if kind == "single" else 2), said()
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
    process.wait(timeout=30)
    deadline = time.monotonic() + 15
    while alive(workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(workers) == [], said()
    if number != signal.SIGKILL:
        assert "the same command goes on from here" in said() and "Traceback" not in said(), said()
