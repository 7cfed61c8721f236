"""Denoisers that are on the device only while they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

MODEL, GROUP = "model", "group"
KINDS = (MODEL, GROUP)
CPU = torch.device("cpu")


@contextmanager
def offloaded(kind: str, experts: list[nn.Module], place: torch.device) -> Iterator[None]:
    """Inside, the experts work on a device and are on the CPU otherwise: each as a whole while it is called ("model"),
    or block by block ("group"), which takes the least memory and the most time.
    """
    with ExitStack() as stack:
        for expert in experts:
            stack.enter_context(_in_groups(expert, place) if kind == GROUP else _as_whole(expert, experts, place))
        yield


@contextmanager
def _as_whole(expert: nn.Module, experts: list[nn.Module], place: torch.device) -> Iterator[None]:
    def come(*_: object) -> None:
        if next(expert.parameters()).device != place:
            for other in experts:
                other.to(CPU)
            expert.to(place)

    handle = expert.register_forward_pre_hook(come, prepend=True)
    try:
        yield
    finally:
        handle.remove()
        expert.to(CPU)


@contextmanager
def _in_groups(expert: nn.Module, place: torch.device) -> Iterator[None]:
    from diffusers.hooks import HookRegistry, apply_group_offloading

    apply_group_offloading(
        expert, onload_device=place, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1
    )
    try:
        yield
    finally:
        for module in expert.modules():
            if isinstance(registry := getattr(module, "_diffusers_hook", None), HookRegistry):
                for name in list(registry.hooks):
                    registry.remove_hook(name, recurse=False)
        expert.to(CPU)
