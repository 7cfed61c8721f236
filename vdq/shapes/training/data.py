"""Training examples drawn from a counter: item ``i`` is the same whenever and wherever it is asked for."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vdq.shapes.render import FRAMES, render
from vdq.shapes.scenes import Scene, caption, label, split

LABEL_SHARE = 0.3


class Counted(Dataset):
    """A stream of items ``make(offset), make(offset + 1), ...``; the offset goes on where the last epoch ended."""

    def __init__(self, make: Callable[[int], object], length: int, offset: int) -> None:
        self.make, self.length, self.offset = make, length, offset

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> object:
        return self.make(self.offset + index)


def loader(make: Callable[[int], object], *, batch_size: int, steps: int, epoch: int) -> DataLoader:
    """One epoch of ``steps`` batches; a resumed training sees the batches it would have seen."""
    length = batch_size * steps
    return DataLoader(Counted(make, length, epoch * length), batch_size=batch_size)


def training_scene(index: int) -> Scene:
    scenes = split()["training"]
    return scenes[random.Random(f"scene {index}").randrange(len(scenes))]


def words(scene: Scene, index: int) -> str:
    """A caption of the scene, or in 30 % of the cases a short label."""
    rng = random.Random(f"words {index}")
    return (label if rng.random() < LABEL_SHARE else caption)(scene, rng)


def to_float(frames: np.ndarray) -> Tensor:
    """uint8 [..., H, W, 3] to float32 [..., 3, H, W] in -1..1."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def random_frames(index: int, count: int) -> Tensor:
    """``count`` random frames of a random training scene, [count, 3, 64, 64]."""
    rng = np.random.default_rng([index, 1])
    return to_float(render(training_scene(index), rng, sorted(rng.choice(FRAMES, count, replace=False))))
