"""The model family that the random block is of. All that the benchmark knows of STDiT stands here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdq.benchmark.plan import ROWS, Plan
from vdq.models.stdit import STDiT

NAME = "STDiT"
BLOCK_FQN = "blocks.0"
# Modules of the block: linears C -> C, C -> 4C and 4C -> C, and the last two with the GELU between them.
LINEARS = ("attn.proj", "mlp.fc1", "mlp.fc2")
CHAIN = "mlp"
PATCH = 2


def random_network(plan: Plan) -> nn.Module:
    """A denoiser of one block with the plan's dimensions; its weights are random and always the same."""
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


def random_inputs(net: nn.Module, timestep: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise for latents, the timestep and noise for captions, of one prompt with guidance.

    A single row would not do: its temporal tokens are a view that is not contiguous, with which torch calculates many
    small products.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(ROWS, net.in_channels, *net.input_size, generator=generator)
    captions = torch.randn(ROWS, 1, *net.y_embedder.y_embedding.shape, generator=generator)
    return latents, timestep.expand(ROWS), captions
