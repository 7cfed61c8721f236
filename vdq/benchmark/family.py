"""The random block of STDiT, which is measured where a model has none of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdq.benchmark.plan import ROWS, Plan
from vdq.diffusion.schedule import Schedule
from vdq.models.one_block import Call, OneBlock
from vdq.models.stdit import STDiT

BLOCK_FQN = "blocks.0"
LINEARS = ("blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2")  # C -> C, C -> 4C and 4C -> C
CHAIN = "blocks.0.mlp"  # the last two with the GELU between them
PATCH = 2


def stdit_block(plan: Plan, schedule: Schedule) -> OneBlock:
    """STDiT of one block with the plan's dimensions; a call is one prompt with guidance."""
    net = _network(plan)

    def inputs(step: int, dtype: torch.dtype) -> Call:
        latents, timestep, captions = _inputs(net, schedule.timesteps[step], step)
        return Call((latents.to(dtype), timestep, captions.to(dtype)), {})

    shape = f"{ROWS} rows of {plan.frames} frames of {plan.side**2} positions"
    return OneBlock(
        net=net,
        blocks={BLOCK_FQN: f"STDiT block of width {plan.hidden_size}, {plan.tokens:,} tokens ({shape})"},
        linears=LINEARS,
        chain=CHAIN,
        quantizable=lambda fqn: fqn.startswith(f"{BLOCK_FQN}."),
        timesteps=schedule.timesteps,
        inputs=inputs,
        tokens=plan.tokens,
    )


def _network(plan: Plan) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = STDiT(
            input_size=(plan.frames, PATCH * plan.side, PATCH * plan.side),
            patch_size=(1, PATCH, PATCH),
            hidden_size=plan.hidden_size,
            depth=1,
            num_heads=plan.num_heads,
            caption_channels=plan.caption_channels,
            model_max_length=plan.caption_tokens,
        )
        for parameter in net.parameters():
            if not parameter.any():  # late branches start at zero, which would hide everything before them
                nn.init.normal_(parameter, std=0.02)
    return net.eval().requires_grad_(False)


def _inputs(net: nn.Module, timestep: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise for latents, the timestep and noise for captions, of one prompt with guidance.

    A single row would not do: its temporal tokens are a view that is not contiguous, with which torch calculates many
    small products.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(ROWS, net.in_channels, *net.input_size, generator=generator)
    captions = torch.randn(ROWS, 1, *net.y_embedder.y_embedding.shape, generator=generator)
    return latents, timestep.expand(ROWS), captions
