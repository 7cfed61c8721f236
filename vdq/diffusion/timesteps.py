"""The timesteps that parameters are for: in words, and how far others are from them."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import Tensor, nn

NEAREST = "nearest"
SAME = 1e-4  # of the largest timestep: what versions of a library may differ by
Timesteps = tuple[float, ...]  # in sampling order


class Distance(NamedTuple):
    """Between timesteps of the same steps, in their units."""

    largest: float
    mean: float


def listed(timesteps: Tensor | None) -> Timesteps | None:
    """[N] as numbers; None where they are not known."""
    return None if timesteps is None else tuple(timesteps.double().tolist())


def of_call(module: nn.Module, inputs: tuple, named_inputs: dict[str, Any]) -> Tensor:
    """The argument `timestep` of a call of a module, by name or by its place."""
    if (given := named_inputs.get("timestep")) is not None:
        return given
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return inputs[names.index("timestep")]


def described(timesteps: Timesteps) -> str:
    """Timesteps in short, such as "8 steps, 999 ... 125"."""
    return f"{len(timesteps)} steps, {timesteps[0]:.5g} ... {timesteps[-1]:.5g}"


def same(one: Timesteps, other: Timesteps) -> bool:
    """Whether two schedules have the same timesteps, within SAME."""
    if len(one) != len(other):
        return False
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= SAME * max(map(abs, one))


def nearest(wanted: Timesteps, known: Timesteps) -> list[int]:
    """For every wanted timestep the number of the nearest known one, the earlier of two as near."""
    return [min(range(len(known)), key=lambda step: abs(known[step] - timestep)) for timestep in wanted]


def distance(one: Timesteps, other: Timesteps) -> Distance:
    """How far two lists of one length are apart."""
    apart = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return Distance(max(apart), sum(apart) / len(apart))
