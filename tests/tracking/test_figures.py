"""The figure of activation bits shows the schedules that it gets."""

import matplotlib.pyplot as plt
import numpy as np

from vdq.tracking import figures

SCHEDULES = [
    {"act_bits": [8, 4, 4, 8], "change": [0.0, 0.05, 0.06, 0.2]},
    {"act_bits": [8, 8, 4, 4], "change": [0.0, 0.1, 0.02, 0.03]},
    {"act_bits": [8, 4, 4, 4], "change": [0.0, 0.0, 0.01, 0.01]},
]


def test_bits_of_every_video_and_step(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.plt, "close", drawn.append)
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
