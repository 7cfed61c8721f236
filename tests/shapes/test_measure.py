"""What is measured from pixels, by the renderer, which knows what it draws."""

from dataclasses import replace

import numpy as np
import pytest

from vdq.shapes.measure import departures, measure
from vdq.shapes.render import render
from vdq.shapes.scenes import Scene, prompts, split

OPPOSITE = {"right": "left", "left": "right", "up": "down", "down": "up", "grow": "shrink", "shrink": "grow"}


def test_rendered_videos_follow_their_prompt_and_reversed_ones_do_not():
    pairs = list(zip(split()["evaluation"], prompts("evaluation"), strict=True))
    for number, (scene, prompt) in enumerate(pairs[::4]):
        video = render(scene, np.random.default_rng(number))
        assert departures(prompt, video) == {}
        other = OPPOSITE.get(scene.motion)  # still and orbiting shapes look the same backwards
        assert departures(prompt, video[::-1]) == ({"motion": other} if other else {}), prompt


@pytest.mark.parametrize(
    ("name", "shown"),
    [("shape", "square"), ("color", "pink"), ("size", "large"), ("background", "striped"), ("motion", "still")],
)
def test_one_other_attribute_is_named(name, shown):
    """The blue circle asked to go left that was shown as right though it went right."""
    scene = Scene("circle", "blue", "small", "gray", "left")
    video = render(replace(scene, **{name: shown}), np.random.default_rng(0))
    assert departures("In front of a gray wall a tiny blue circle moves from right to left.", video) == {name: shown}
    assert departures("blue circle moving left", video) == (
        {name: shown} if name not in ("size", "background") else {}
    )  # which leaves both open


@pytest.mark.parametrize(("power", "shape"), [(2, "circle"), (3.7, "circle or square"), (8, "square")])
def test_a_shape_between_two_is_neither(power, shape):
    """|x|^p + |y|^p < r^p goes from a circle to a square."""
    x, y = np.abs(np.mgrid[:64, :64] - 31.5)
    inside = (x**power + y**power)[None, ..., None] < 15**power
    video = np.where(inside, (35, 160, 55), 128).astype(np.uint8).repeat(4, 0)
    expected = {"shape": shape, "color": "green", "size": "large", "background": "gray", "motion": "still"}
    assert measure(video) == expected


def test_a_video_without_a_shape_shows_none():
    video = render(Scene("star", "red", "large", "checkered", "up"), np.random.default_rng(0))
    video[:9] = video[:9, :, :, :1]  # grey
    found = measure(video)
    assert found.pop("background") == "checkered" and set(found.values()) == {"none"}
