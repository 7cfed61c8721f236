"""Graded damage for videos of the testbed: what the small DOVER learns to see.

Each distortion takes frames uint8 [T, 64, 64, 3], a severity 0 (nothing) to 1 and a random generator, and returns
frames of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

BLOCK = 8


class Distortion(NamedTuple):
    """A kind of damage. ``technical`` and ``aesthetic`` say how much of the severity each of the two qualities loses,
    0..1.
    """

    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    technical: float
    aesthetic: float


def blur(frames: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    sigma = 3.5 * severity
    return gaussian_filter(frames, (0, sigma, sigma, 0))


def noise(frames: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return _to_uint8(frames + 60 * severity * rng.standard_normal(frames.shape, dtype=np.float32))


def blocking(frames: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Blends with the means of blocks of 8 x 8 pixels, as strong compression does."""
    t, h, w, c = frames.shape
    means = frames.reshape(t, h // BLOCK, BLOCK, w // BLOCK, BLOCK, c).mean((2, 4), dtype=np.float32)
    return _to_uint8((1 - severity) * frames + severity * means.repeat(BLOCK, 1).repeat(BLOCK, 2))


def banding(frames: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A soft slope over the frame in few grey levels; the testbed's flat colours alone would show no bands."""
    angle = 2 * np.pi * rng.random()
    y, x = np.mgrid[0 : frames.shape[1], 0 : frames.shape[2]] / frames.shape[1] - 0.5
    slope = 80 * severity * (np.cos(angle) * x + np.sin(angle) * y)
    step = 1 + 39 * severity
    return _to_uint8((np.floor((frames + slope[..., None]) / step) + 0.5) * step)


def color_shift(frames: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    direction = rng.standard_normal(3)
    return _to_uint8(frames + 110 * severity * (direction / np.abs(direction).max()).astype(np.float32))


def frame_freeze(frames: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Frames at random are replaced by the one before them, and those that are left jump."""
    kept = rng.random(len(frames)) >= 0.7 * severity
    kept[0] = True
    shown = np.maximum.accumulate(np.where(kept, np.arange(len(frames)), 0))
    jumps = np.rint(8 * severity * rng.standard_normal((len(frames), 2))).astype(int)
    return np.stack([np.roll(frames[i], jumps[i], (0, 1)) for i in shown])


def quantization(frames: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Mottle of low resolution that lives through a few frames, as decoding rounded latents gives."""
    mottle = _interpolated(rng.standard_normal((3, 4, 8, 8)), frames.shape)
    grain = _interpolated(rng.standard_normal((3, 16, 32, 32)), frames.shape)
    return _to_uint8(frames + 60 * severity * (mottle + 0.5 * grain))


def _interpolated(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[C, t, h, w] to float32 frames of ``shape`` [T, H, W, C]."""
    tensor = torch.from_numpy(values[None].astype(np.float32))
    return F.interpolate(tensor, shape[:3], mode="trilinear")[0].movedim(0, -1).numpy()


DISTORTIONS = {
    "blur": Distortion(blur, 1.0, 0.5),
    "noise": Distortion(noise, 1.0, 0.5),
    "blocking": Distortion(blocking, 1.0, 0.5),
    "banding": Distortion(banding, 1.0, 0.7),
    "color_shift": Distortion(color_shift, 0.2, 1.0),
    "frame_freeze": Distortion(frame_freeze, 1.0, 0.1),
    "quantization": Distortion(quantization, 1.0, 0.8),
}


# How often training shows them: what was hardest to learn more often.
SHARES = {"blur": 3, "noise": 1, "blocking": 1, "banding": 1, "color_shift": 2, "frame_freeze": 3, "quantization": 1}


def distort(
    frames: np.ndarray, rng: np.random.Generator, shares: dict[str, int] | None = None
) -> tuple[np.ndarray, float, float, str]:
    """One distortion at random, of random severity: the frames, technical and aesthetic severity, its name.

    All are equally likely, or by their ``shares``. One video in eight stays as it is, named "none".
    """
    if rng.random() < 1 / 8:
        return frames, 0.0, 0.0, "none"
    weights = np.array([(shares or {}).get(name, 1) for name in DISTORTIONS])
    name = rng.choice(list(DISTORTIONS), p=weights / weights.sum())
    severity = rng.random()
    apply, technical, aesthetic = DISTORTIONS[name]
    return apply(frames, severity, rng), technical * severity, aesthetic * severity, str(name)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
