"""The line after each job of a sweep: how many ended, and how long the rest will take."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from vdq.commands import sweep
from vdq.commands.sweep import Comparison

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
LINE = re.compile(r"sweep: .*\| (\d+)/(\d+) \[(\S+)<(\S+),")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr(sweep.time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def config(folder: Path, task: list[str], number: int | str = "???", sweeper: str = BASIC) -> DictConfig:
    hydra = {
        "job": {"num": number},
        "sweep": {"dir": str(folder / "sweep"), "subdir": "${hydra.job.num}"},
        "sweeper": {"_target_": sweeper, "params": {"bits": "w8a8,w4a4"}},
        "overrides": {"task": task},
    }
    return OmegaConf.create({"hydra": hydra, "paths": {"runs": str(folder)}})


class Sweep:
    """Plays the jobs of one launcher to a callback, on the given clock."""

    def __init__(self, folder: Path, clock: Clock, task: list[str], sweeper: str = BASIC) -> None:
        self.folder, self.clock, self.task, self.callback = folder, clock, task, Comparison(str(folder))
        self.callback.on_multirun_start(config(folder, task, sweeper=sweeper))

    def job(self, number: int, seconds: float, *, found: bool = False, run: str | None = "run") -> None:
        callback = pickle.loads(pickle.dumps(self.callback))  # as launchers do
        job = config(self.folder, self.task, number)
        callback.on_job_start(job)
        result = self.folder / f"{run}{number}" / "result.json"
        if not found:
            self.clock.now += seconds
        if run is not None:
            result.parent.mkdir()
            result.write_text("{}")
            os.utime(result, (self.clock.now - 3600 * found,) * 2)
        done = JobReturn(status=JobStatus.COMPLETED, overrides=["quant=asq"])
        done.return_value = run and f"{run}{number}"
        callback.on_job_end(job, done)


def shown(capsys: pytest.CaptureFixture) -> tuple[str, ...]:
    return LINE.findall(capsys.readouterr().err)[-1]


def test_time_left_is_that_of_runs_that_were_computed(tmp_path, clock, capsys):
    jobs = Sweep(tmp_path, clock, ["quant=a,b,c,d,e"])
    for number in range(6):
        jobs.job(number, 1, found=True)
        clock.now += 1
    assert shown(capsys) == ("6", "10", "00:05", "?")
    jobs.job(6, 60)
    assert shown(capsys) == ("7", "10", "01:06", "03:00")
    jobs.job(7, 1, run=None)  # refused at once: says nothing of the others
    assert shown(capsys)[3] == "02:02"


def test_workers_side_by_side_share_the_rate(tmp_path, clock, capsys):
    jobs = Sweep(tmp_path, clock, ["quant=a,b"])
    jobs.job(0, 60)
    clock.now -= 60
    jobs.job(1, 60)
    assert shown(capsys) == ("2", "4", "01:00", "01:00")


def test_other_sweepers_show_no_bar(tmp_path, clock, capsys):
    Sweep(tmp_path, clock, ["quant=a,b"], sweeper="somebody.OptunaSweeper").job(0, 1)
    assert capsys.readouterr().err == ""


def test_failure_in_another_process_fails_the_sweep(tmp_path, clock, capsys):
    jobs = Sweep(tmp_path, clock, ["quant=a,b"])
    jobs.job(0, 1, run=None)
    jobs.callback.on_multirun_end(config(tmp_path, jobs.task))  # run.py knows of those in its own process
    record = tmp_path / "sweep" / "0" / "job.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"process": "elsewhere:1"}))
    with pytest.raises(SystemExit) as stopped:
        jobs.callback.on_multirun_end(config(tmp_path, jobs.task))
    assert stopped.value.code == 1
    assert capsys.readouterr().err.endswith("error: job 0 failed: quant=asq\n")
