"""What speed is measured on where a whole model is too much: a denoiser with one block of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """Arguments of a call."""

    args: tuple
    named: dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class OneBlock:
    """A denoiser with one block of each kind and random weights, always the same, and the calls of a sampling.

    net: fp32 on the CPU. blocks: the fqn of each block, with its name for titles. linears: fqns of linears in the first
    block, one of each shape; chain: of two linears with a GELU between them, where the family has such a module.
    quantizable: whether the linear of an fqn may be quantized. timesteps [N]: of the steps. inputs(step, dtype): the
    arguments at a step, on the CPU, with noise for latents. tokens: of the videos in a call. facts: what else a record
    says.
    """

    net: nn.Module
    blocks: dict[str, str]
    linears: tuple[str, ...]
    quantizable: Callable[[str], bool]
    timesteps: Tensor
    inputs: Callable[[int, torch.dtype], Call]
    tokens: int
    chain: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
