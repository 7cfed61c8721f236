"""Our own work is not taken for that of others; a made-up /proc/stat tells how much of it there is."""

import os

import pytest

from vdq.benchmark import machine
from vdq.benchmark.machine import Machine


@pytest.fixture
def stat(tmp_path, monkeypatch):
    """Writes ticks of the two CPUs of a made-up system; this process runs on the second."""

    def write(*lines):
        (tmp_path / "stat").write_text(
            "cpu  1 1 1 1 1 1 1 1 0 0\n" + "".join(f"{line}\n" for line in lines) + "intr 1\n"
        )

    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    return write


def test_share_of_others_is_what_the_cpus_did_beyond_us(stat, monkeypatch):
    now, own = iter([0.0, 2.0]), iter([5.0, 5.5])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(machine.time, "process_time", lambda: next(own))
    stat("cpu0 900 0 0 0 0 0 0 0 0 0", "cpu1 100 0 20 500 10 0 0 5 0 0")
    foreign = Machine().watch()
    # user +60, system +20, steal +10 ticks: 0.9 s of which 0.5 s are ours, in 2 s of one CPU; the rest does not count
    stat("cpu0 999 0 0 0 0 0 0 0 0 0", "cpu1 160 0 40 700 90 0 0 15 30 0")
    assert foreign() == pytest.approx(0.2)


def test_unknown_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "STAT", tmp_path / "missing")
    assert Machine().watch()() is None
