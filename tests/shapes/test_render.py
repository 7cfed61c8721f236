"""Renderings show what the caption says: colour, place and growth of the coloured pixels."""

from dataclasses import replace

import numpy as np
import pytest

from vdq.shapes.render import PALETTE, render
from vdq.shapes.scenes import SHAPES, Scene

SCENE = Scene("square", "red", "large", "black", "still")


def tracks(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centroid x, centroid y and area of the coloured pixels of each frame."""
    video = render(scene, np.random.default_rng(3)).astype(int)
    mask = video.max(-1) - video.min(-1) > 60
    area = mask.sum((1, 2))
    rows, columns = np.mgrid[:64, :64]
    return (mask * columns).sum((1, 2)) / area, (mask * rows).sum((1, 2)) / area, area


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", PALETTE)
def test_the_shape_has_its_colour(shape, color):
    scene = replace(SCENE, shape=shape, color=color)
    video = render(scene, np.random.default_rng(0)).astype(int)
    assert video.shape == (16, 64, 64, 3)
    pixels = video.reshape(-1, 3)
    inside = np.median(pixels[pixels.max(-1) - pixels.min(-1) > 60], axis=0)
    assert np.abs(inside - PALETTE[color]).max() <= 11


@pytest.mark.parametrize(
    "motion, track, sign",
    [("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1), ("grow", 2, 1), ("shrink", 2, -1)],
)
def test_motions_go_one_way(motion, track, sign):
    moved = sign * np.diff(tracks(replace(SCENE, motion=motion, size="small"))[track])
    assert (moved >= 0).all() and moved.sum() > 25


def test_still_stays_and_orbit_returns():
    x, y, _ = tracks(SCENE)
    assert np.ptp(x) == np.ptp(y) == 0
    x, y, _ = tracks(replace(SCENE, motion="orbit", size="small"))
    assert np.ptp(x) > 15 and np.ptp(y) > 15
    assert np.hypot(x[0] - x[-1], y[0] - y[-1]) < 8


def test_some_frames_are_those_of_the_whole_video():
    whole = render(SCENE, np.random.default_rng(5))
    assert np.array_equal(render(SCENE, np.random.default_rng(5), [2, 9]), whole[[2, 9]])
