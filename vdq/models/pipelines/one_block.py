"""The blocks of a transformer of diffusers, and how much of a call's arithmetic is theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vdq.models.one_block import Call, OneBlock
from vdq.quant.layers import receiving_modules

LATENTS, TIMESTEP = "hidden_states", "timestep"


def block_of(
    net: nn.Module,
    call: Call,
    *,
    name: str,
    timesteps: Tensor,
    quantizable: Callable[[str], bool],
    facts: dict[str, Any],
) -> OneBlock:
    """A transformer of one block of each kind, with its first call in a sampling; name: of its family."""
    blocks = first_blocks(net, quantizable)
    rows, tokens, width = video_tokens(net, call, next(iter(blocks)))
    size = f"width {width}, {rows * tokens:,} tokens ({rows} {'row' if rows == 1 else 'rows'} of {tokens:,})"
    titles = {fqn: f"{name} block of {size}" if len(blocks) == 1 else f"{name} block {fqn} of {size}" for fqn in blocks}

    def inputs(step: int, dtype: torch.dtype) -> Call:
        generator = torch.Generator().manual_seed(step)
        named = tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, call.named)
        timestep, latents = call.named[TIMESTEP], call.named[LATENTS]
        named[TIMESTEP] = torch.full_like(timestep, timesteps[step].item())
        named[LATENTS] = torch.randn(latents.shape, generator=generator).to(dtype)
        return Call(call.args, named)

    return OneBlock(
        net=net,
        blocks=titles,
        linears=_of_each_shape(net, next(iter(blocks)), quantizable),
        quantizable=quantizable,
        timesteps=timesteps,
        inputs=inputs,
        tokens=rows * tokens,
        facts=facts,
    )


def first_blocks(net: nn.Module, quantizable: Callable[[str], bool]) -> list[str]:
    """The first block of every list of blocks in a transformer, by fqn."""
    linears = receiving_modules(net, quantizable)
    firsts = [f"{name}.0" for name, module in net.named_children() if isinstance(module, nn.ModuleList)]
    return [first for first in firsts if any(fqn.startswith(f"{first}.") for fqn in linears)]


def video_tokens(net: nn.Module, call: Call, block: str) -> tuple[int, int, int]:
    """Rows of a call, tokens of the video in a row, and their channels, as a block gets them."""
    seen: list[Tensor] = []

    def leave(module: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        seen.append(_latents(Call(args, named)))
        raise ReachedBlock

    hook = net.get_submodule(block).register_forward_pre_hook(leave, with_kwargs=True)
    try:
        net(*call.args, **call.named)
    except ReachedBlock:
        pass
    finally:
        hook.remove()
    rows, width = len(_latents(call)), seen[0].shape[-1]
    return rows, seen[0].numel() // width // rows, width


def _latents(call: Call) -> Tensor:
    """The first argument of a transformer, or of a block."""
    return call.args[0] if call.args else call.named[LATENTS]


class ReachedBlock(Exception):
    """Leaves a transformer before its first block."""


def _of_each_shape(net: nn.Module, block: str, quantizable: Callable[[str], bool]) -> tuple[str, ...]:
    """The first linear of each shape in a block."""
    found: dict[torch.Size, str] = {}
    for fqn, linear in receiving_modules(net, quantizable).items():
        if fqn.startswith(f"{block}."):
            found.setdefault(linear.weight.shape, fqn)
    return tuple(found.values())
