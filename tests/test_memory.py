"""Against an allocation of known size."""

import sys

import pytest
import torch

from vdq.memory import PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident memory")
def test_peak_is_that_of_the_block():
    with PeakMemory("cpu") as before:
        pass
    with PeakMemory("cpu") as peak:
        torch.ones(250_000_000)  # 1 GB, touched
    assert peak.gigabytes - before.gigabytes == pytest.approx(1.0, abs=0.1)
    assert str(peak) == f"{peak.gigabytes:.1f} GB on cpu"


def test_unknown_where_nothing_tells(monkeypatch, tmp_path):
    monkeypatch.setattr("vdq.memory.STATUS", tmp_path / "status")
    monkeypatch.setattr("vdq.memory.CLEAR", tmp_path / "none" / "clear")
    with PeakMemory("cpu") as peak:
        pass
    assert str(peak) == "unknown"
