"""What a video of the testbed shows, measured from its pixels without any network.

The testbed's judge averages over frames, so it cannot see which way a shape moves; this can. The shape is the coloured
part of a frame, since all backgrounds are grey.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from vdq.shapes.render import PALETTE, SIDE, background, outside
from vdq.shapes.scenes import BACKGROUNDS, SHAPES, attributes

COLOURED = 60  # difference of a pixel's channels; that of the palette's colours is 110 and more
FEWEST = 12  # coloured pixels of a frame that shows a shape
BETWEEN = 13.0  # radius between small and large shapes
MOVED = 12.0  # pixels; what moves goes 28 to 36, and what orbits 24 both ways
GROWN = 1.4  # ratio of areas at the end and at the beginning; 5.2 when rendered
CLEAR = 0.03  # by which the overlap of a shape must exceed the others'; 0.15 when rendered

Y, X = np.mgrid[:SIDE, :SIDE] + 0.5


def departures(prompt: str, frames: np.ndarray) -> dict[str, str]:
    """What a video shows otherwise than its prompt asks, such as ``{"motion": "right"}``; empty if it follows it.

    Args:
        prompt: in the words of the testbed's captions and labels; what it leaves open is not compared.
        frames: uint8 [T, 64, 64, 3].
    """
    shown = measure(frames)
    return {name: shown[name] for name, asked in attributes(prompt).items() if shown[name] != asked}


def measure(frames: np.ndarray) -> dict[str, str]:
    """The attributes of a `Scene` as uint8 frames [T, 64, 64, 3] show them.

    All but the background are "none" where less than half of the frames show a shape. A shape between two is called
    "circle or square".
    """
    spread = frames.max(-1) - frames.min(-1)
    grey = spread <= COLOURED / 2  # without the edges of the shape
    shown = {"background": _background(frames[grey], np.nonzero(grey)[1:])}
    masks = spread > COLOURED
    masks = masks[masks.sum((1, 2)) >= FEWEST]
    if 2 * len(masks) < len(frames):
        return shown | dict.fromkeys(("shape", "color", "size", "motion"), "none")
    shape, radius = _shape(masks)
    size = "small" if radius < BETWEEN else "large"
    return shown | {"shape": shape, "color": _color(frames[spread > COLOURED]), "size": size, "motion": _motion(masks)}


def _background(pixels: np.ndarray, places: tuple[np.ndarray, np.ndarray]) -> str:
    """The background whose grey levels are nearest to those of grey pixels [n, 3], at rows and columns `places`."""
    grey = pixels.mean(1)
    return min(BACKGROUNDS, key=lambda name: np.abs(grey - background(name)[..., 0][places]).sum())


def _color(pixels: np.ndarray) -> str:
    """The palette's colour that is nearest to the median of pixels [n, 3]."""
    middle = np.median(pixels, axis=0)
    return min(PALETTE, key=lambda name: np.linalg.norm(middle - PALETTE[name]))


def _motion(masks: np.ndarray) -> str:
    """The motion that place and size of the coloured pixels [T, 64, 64] show over the frames."""
    place, area = _place(masks), masks.sum((1, 2))
    way, across = place[-1] - place[0], np.ptp(place, axis=0)
    if across.min() > MOVED:
        return "orbit"
    if across.max() > MOVED:
        axis = np.abs(way).argmax()
        return (("left", "right"), ("up", "down"))[axis][int(way[axis] > 0)]
    growth = area[-1] / area[0]
    return "grow" if growth > GROWN else "shrink" if growth < 1 / GROWN else "still"


def _shape(masks: np.ndarray) -> tuple[str, float]:
    """The shape whose outline fits the coloured pixels [T, 64, 64] best, and its middle radius in pixels.

    Each shape is laid over them with their area and centre of mass; what counts is the intersection over the union,
    averaged over the frames in which the shape does not touch the edge, if there are any.
    """
    edge = np.ones((SIDE, SIDE), bool)
    edge[1:-1, 1:-1] = False
    inside = masks[~(masks & edge).any((1, 2))]
    masks = inside if len(inside) else masks
    place, area = _place(masks), masks.sum((1, 2))
    fits = {}
    for shape in SHAPES:
        unit_area, unit_place = _unit(shape)
        radius = np.sqrt(area / unit_area)
        center = place - radius[:, None] * unit_place
        laid = outside(shape, *center.T, radius) < 0
        overlap = (laid & masks).sum((1, 2)) / (laid | masks).sum((1, 2))
        fits[shape] = overlap.mean(), float(np.median(radius))
    overlap, radius = max(fits.values())
    return " or ".join(shape for shape in SHAPES if fits[shape][0] > overlap - CLEAR), radius


@cache
def _unit(shape: str) -> tuple[float, np.ndarray]:
    """Area and centre of mass (x, y) of a shape of radius 1 around the origin."""
    radius, middle = SIDE / 3, np.full(1, SIDE / 2)
    mask = outside(shape, middle, middle, np.full(1, radius)) < 0
    return mask.sum() / radius**2, (_place(mask)[0] - SIDE / 2) / radius


def _place(masks: np.ndarray) -> np.ndarray:
    """Centre of mass of the pixels of each mask [T, 64, 64], as x and y [T, 2]."""
    return np.stack([(masks * axis).sum((1, 2)) for axis in (X, Y)], 1) / masks.sum((1, 2))[:, None]
