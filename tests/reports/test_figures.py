"""The figure of activation bits shows the schedules that it gets."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np

from vdq.reports import figures

SCHEDULES = [
    {"act_bits": [8, 4, 4, 8], "change": [0.0, 0.05, 0.06, 0.2]},
    {"act_bits": [8, 8, 4, 4], "change": [0.0, 0.1, 0.02, 0.03]},
    {"act_bits": [8, 4, 4, 4], "change": [0.0, 0.0, 0.01, 0.01]},
]


def test_bits_of_every_video_and_step(tmp_path, monkeypatch):
    drawn = []
    write = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (drawn.append(figure), write(figure, path)))
    figures.bits_figure(SCHEDULES, tmp_path / "act_bits.png")
    assert [path.name for path in tmp_path.iterdir()] == ["act_bits.png"]
    assert plt.imread(tmp_path / "act_bits.png").std() > 0
    (figure,) = drawn
    videos, mean, change = figure.axes[:3]
    np.testing.assert_array_equal(videos.images[0].get_array(), [s["act_bits"] for s in SCHEDULES])
    assert videos.get_title() == "5.67 bits on average"
    np.testing.assert_allclose(mean.lines[0].get_ydata(), [8, 16 / 3, 4, 16 / 3], rtol=1e-6)
    for line, schedule in zip(change.lines, SCHEDULES, strict=True):
        np.testing.assert_allclose(line.get_ydata(), schedule["change"][1:], rtol=1e-6)
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])


def test_backend_of_pyplot_stays_with_whoever_shows_figures():
    """Notebooks show none once a module that they import has changed it."""
    modules = ", ".join(f"vdq.reports.{name}" for name in ("alpha", "execution", "figures", "neighbours", "frames"))
    code = f"import matplotlib; matplotlib.use('svg'); import {modules}; print(matplotlib.get_backend())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "svg"
