"""Renders a scene as a short video: 16 frames of 64 x 64 pixels, one antialiased shape on a plain or patterned
background.
"""

from __future__ import annotations

import numpy as np

from vdq.shapes.scenes import Scene

FRAMES, SIDE = 16, 64
PALETTE = {
    "red": (215, 35, 35),
    "green": (35, 160, 55),
    "blue": (40, 70, 215),
    "yellow": (240, 215, 40),
    "purple": (130, 45, 175),
    "orange": (245, 130, 25),
    "cyan": (50, 205, 220),
    "pink": (250, 140, 195),
}
RADIUS = {"small": 10.5, "large": 16.0}
_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5


def render(scene: Scene, rng: np.random.Generator, frames: slice | list[int] = slice(None)) -> np.ndarray:
    """The video of a scene, or some ``frames`` of it, uint8 [F, 64, 64, 3] with F = 16 by default.

    ``rng`` draws position, size and colour within the limits of the scene's attributes.
    """
    center_x, center_y, radius = (track[frames] for track in _trajectory(scene, rng))
    coverage = np.clip(0.5 - outside(scene.shape, center_x, center_y, radius), 0.0, 1.0)[..., None]
    color = np.clip(np.array(PALETTE[scene.color]) + rng.uniform(-10, 10, 3), 0, 255).astype(np.float32)
    levels = background(scene.background) + rng.uniform(-6, 6)
    video = coverage * color + (1 - coverage) * np.clip(levels, 0, 255)[None]
    return (video + 0.5).astype(np.uint8)


def outside(shape: str, center_x: np.ndarray, center_y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How far every pixel lies outside a shape, in pixels and negative inside, [F, 64, 64] of centres and radii [F]."""
    x, y = _X - center_x[:, None, None], _Y - center_y[:, None, None]
    return _DISTANCE[shape](x, y, radius[:, None, None])


def _trajectory(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre x, centre y and radius in pixels for each of the 16 frames."""
    phase = np.linspace(0.0, 1.0, FRAMES, dtype=np.float32)
    middle = SIDE / 2
    x = np.full(FRAMES, middle + rng.uniform(-6, 6), np.float32)
    y = np.full(FRAMES, middle + rng.uniform(-6, 6), np.float32)
    radius = np.full(FRAMES, RADIUS[scene.size] * rng.uniform(0.92, 1.08), np.float32)
    sweep = middle + (2 * phase - 1) * rng.uniform(14, 18)
    if scene.motion == "right":
        x = sweep
    elif scene.motion == "left":
        x = sweep[::-1]
    elif scene.motion == "down":
        y = sweep
    elif scene.motion == "up":
        y = sweep[::-1]
    elif scene.motion == "grow":
        radius = radius * (0.55 + 0.7 * phase)
    elif scene.motion == "shrink":
        radius = radius * (1.25 - 0.7 * phase)
    elif scene.motion == "orbit":
        angle = 2 * np.pi * (phase * FRAMES / (FRAMES + 1) + rng.uniform())
        x, y = middle + 12 * np.cos(angle), middle + 12 * np.sin(angle)
    return x, y, radius


def background(name: str) -> np.ndarray:
    """Grey levels [64, 64, 1] of a background; patterns have cells of 16 pixels."""
    if name == "striped":
        level = np.where((_Y // 8) % 2 == 0, 60.0, 110.0)
    elif name == "checkered":
        level = np.where((_X // 16 + _Y // 16) % 2 == 0, 150.0, 205.0)
    else:
        level = np.full((SIDE, SIDE), {"black": 12.0, "gray": 128.0, "white": 243.0}[name])
    return level[..., None].astype(np.float32)


def _circle(x, y, r):
    return np.hypot(x, y) - r


def _square(x, y, r):
    return np.maximum(np.abs(x), np.abs(y)) - 0.88 * r


def _triangle(x, y, r):
    """Equilateral, tip up, circumscribed radius 1.15 r."""
    inner = 0.575 * r
    return np.maximum(y + 0.1 * r - inner, np.abs(x) * 0.8660254 - (y + 0.1 * r) * 0.5 - inner)


def _star(x, y, r):
    """Five points; the plane is folded into one tenth of the star, where its edge is a straight line."""
    r = 1.15 * r
    step = np.pi / 5
    angle = np.arctan2(x, -y)
    angle = np.abs((angle + step) % (2 * step) - step)
    radius = np.hypot(x, y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    tip_u, notch_u, notch_v = r, 0.45 * r * np.cos(step), 0.45 * r * np.sin(step)
    edge_u, edge_v = notch_u - tip_u, notch_v
    return ((u - tip_u) * edge_v - v * edge_u) / np.hypot(edge_u, edge_v)


def _cross(x, y, r):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - r, y - 0.36 * r), np.maximum(x - 0.36 * r, y - r))


def _ring(x, y, r):
    return np.abs(np.hypot(x, y) - 0.74 * r) - 0.27 * r


_DISTANCE = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "ring": _ring}
