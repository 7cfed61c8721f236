"""Sweeps by Hydra's launchers: other processes share calibration and reference, and the sweep still ends as one."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from vdq.tracking import runs

LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
}
# The first is refused in its own process, the others are computed.
SWEEP = ["quant=tsw", "quant.num_time_ranges=3,per_step,1"]
BAR = re.compile(r"^sweep: .*\| (\d)/3 \[.*<(\S+), ", re.MULTILINE)


def table(output: str) -> list[str]:
    """The first cells of the rows of the last table."""
    rows = output[output.rindex("| method") :].splitlines()[2:]
    return [row.split("|")[1].strip() for row in rows if row.startswith("|")]


def everything(output: str, runs: Path) -> str:
    """With what the jobs of submitit wrote into files of their own."""
    return output + "".join(path.read_text() for path in sorted(runs.glob("sweeps/*/.submitit/*/*_log.*")))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_in_processes_of_their_own(testbed, launcher):
    if find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is None:
        pytest.skip(f"hydra-{launcher}-launcher is not installed")
    process = testbed.start(*SWEEP, *LAUNCHERS[launcher], multirun=True)
    output = process.communicate(timeout=1800)[0]
    log = everything(output, testbed.runs)
    assert process.returncode == 1, log  # since one of three was refused
    assert output.splitlines()[-1].startswith("error: job 0 failed: ") and "num_time_ranges=3" in output
    assert "error: num_time_ranges=3 must be in 1..2, the denoising steps" in log and "Traceback" not in log
    assert "Callback" not in log  # Hydra only warns of a failing callback

    assert table(output) == ["fp16", "tsw", "tsw"]
    found = runs(testbed.runs)
    assert sorted(found["quant"]) == ["fp16", "tsw", "tsw"] and found["signature"].is_unique
    assert log.count("calibrate: statistics of 10 prompts written") == 1
    sampled = re.findall(r"^sample: .*/(fp16|tsw)_\S*: 2 videos in", log, re.MULTILINE)
    assert sorted(sampled) == ["fp16", "tsw", "tsw"]
    assert "3" in {done for done, _ in BAR.findall(log)}
    assert not list(testbed.runs.rglob("*.part"))
