"""Against an allocation of known size."""

import subprocess
import sys
from pathlib import Path

import pytest

from vdq.peak_memory import PeakMemory

ROOT = Path(__file__).parents[1]


MEASURE = """
import torch
from vdq.peak_memory import PeakMemory
with PeakMemory("cpu") as before:
    pass
with PeakMemory("cpu") as peak:
    torch.ones(250_000_000)  # 1 GB, touched
print(before.gigabytes, peak.gigabytes, peak)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident memory")
def test_peak_is_that_of_the_block():
    """In a process of its own: this one may have a gigabyte to spare from earlier tests."""
    output = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    before, peak, *words = output.split()
    assert float(peak) - float(before) == pytest.approx(1.0, abs=0.1)
    assert " ".join(words) == f"{float(peak):.1f} GB on cpu"


def test_unknown_where_nothing_tells(monkeypatch, tmp_path):
    monkeypatch.setattr("vdq.peak_memory.STATUS", tmp_path / "status")
    monkeypatch.setattr("vdq.peak_memory.CLEAR", tmp_path / "none" / "clear")
    with PeakMemory("cpu") as peak:
        pass
    assert str(peak) == "unknown"
