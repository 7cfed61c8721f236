"""Damage grows with its severity; PSNR against the undamaged video is the measure from outside."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from skimage.metrics import peak_signal_noise_ratio

from vdq.shapes.distortions import DISTORTIONS, distort
from vdq.shapes.render import render
from vdq.shapes.scenes import split

SEVERITIES = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)
SCENES = [scene for scene in split()["validation"] if scene.motion in ("left", "down", "orbit")][:6]


@pytest.mark.parametrize("name", DISTORTIONS)
def test_more_severity_is_more_damage(name):
    apply, technical, aesthetic = DISTORTIONS[name]
    psnr = []
    for severity in SEVERITIES:
        rendered = [render(scene, np.random.default_rng(number)) for number, scene in enumerate(SCENES)]
        damaged = [apply(frames, severity, np.random.default_rng(7)) for frames in rendered]
        assert all(frames.dtype == np.uint8 and frames.shape == (16, 64, 64, 3) for frames in damaged)
        psnr.append(np.mean([peak_signal_noise_ratio(a, b) for a, b in zip(rendered, damaged, strict=True)]))
    assert spearmanr(SEVERITIES, psnr).statistic < -0.9
    assert 0 < max(technical, aesthetic) <= 1


@pytest.mark.parametrize("name", DISTORTIONS)
def test_none_of_it_is_nearly_nothing(name):
    frames = render(SCENES[0], np.random.default_rng(0))
    assert np.abs(DISTORTIONS[name].apply(frames, 0.0, np.random.default_rng(0)).astype(int) - frames).max() <= 1


def test_blocks_equal_numpy_and_freezing_repeats_frames():
    frames = render(SCENES[0], np.random.default_rng(0))
    blocks = DISTORTIONS["blocking"].apply(frames, 1.0, None)
    assert blocks[3, 8:16, 16:24, 1].std() == 0
    assert blocks[3, 8, 16, 1] == pytest.approx(frames[3, 8:16, 16:24, 1].mean(), abs=0.5)
    frozen = DISTORTIONS["frame_freeze"].apply(frames, 1.0, np.random.default_rng(0))
    same = sum(np.array_equal(a, b) for a, b in zip(frozen[1:], frozen[:-1], strict=True))
    assert same == pytest.approx(0.7 * 15, abs=4)


def test_draws_every_kind_and_leaves_some_as_they_are():
    frames = render(SCENES[0], np.random.default_rng(0))
    drawn = [distort(frames, np.random.default_rng(number)) for number in range(200)]
    names = [name for *_, name in drawn]
    assert set(names) == {*DISTORTIONS, "none"} and 10 <= names.count("none") <= 45
    for damaged, technical, aesthetic, name in drawn:
        assert 0 <= technical <= 1 and 0 <= aesthetic <= 1
        assert name != "none" or (np.array_equal(damaged, frames) and technical == aesthetic == 0)
