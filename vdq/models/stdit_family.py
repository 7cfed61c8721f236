"""The facts of STDiT's family (vdq.models.family): Open-Sora 1.0 and the testbed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdq.models.family import AttentionGroup, Family, TimestepTable, TokenOrder, register
from vdq.models.stdit import CrossAttention, SelfAttention, STDiT, STDiTBlock

ATTN, ATTN_TEMP, CROSS_ATTN, MLP = "attn", "attn_temp", "cross_attn", "mlp"
TEMPORAL_LINEARS = ("t_embedder.mlp.2", "t_block.1")
TIMESTEP_LINEARS = ("t_embedder.mlp.0", *TEMPORAL_LINEARS)


def attention_groups(denoiser: nn.Module) -> list[AttentionGroup]:
    """The groups of every attention. Keys and queries of cross attention may be rotated alike without a change."""
    found = []
    for name, module in denoiser.named_modules():
        if isinstance(module, SelfAttention | CrossAttention):
            before = ("v",) if isinstance(module, SelfAttention) else ("q_linear", "kv_linear")
            head_dim = module.proj.in_features // module.num_heads
            found.append(AttentionGroup(tuple(f"{name}.{layer}" for layer in before), f"{name}.proj", head_dim))
    return found


def token_orders(denoiser: STDiT) -> dict[str, TokenOrder]:
    """The orders of the linears of every block but those that get captions.

    Temporal attention gets the frames of one position after another, all others the positions of one frame.
    """
    frames, positions = denoiser.pos_embed_temporal.shape[1], denoiser.pos_embed.shape[1]
    found = {}
    for block in (name for name, module in denoiser.named_modules() if isinstance(module, STDiTBlock)):
        for part, linears in _LINEARS.items():
            order = TokenOrder(frames, positions, by_position=part == ATTN_TEMP)
            found |= {f"{block}.{part}.{linear}": order for linear in linears}
    return found


_LINEARS = {
    ATTN: ("q", "k", "v", "proj"),
    CROSS_ATTN: ("q_linear", "proj"),
    MLP: ("fc1", "fc2"),
    ATTN_TEMP: ("q", "k", "v", "proj"),
}


@torch.no_grad()
def temporal_features(denoiser: STDiT, timesteps: Tensor) -> dict[str, Tensor]:
    """Inputs of the linears behind the embedding of the timestep, by fqn: timesteps [N] -> each fp32 [N, C].

    They depend on neither prompt nor latents. The sinusoids, which `t_embedder.mlp.0` gets, are left out: they lie
    evenly in -1..1 and are no features that a network made.
    """
    inputs: dict[str, list[Tensor]] = {}  # of every chunk
    hooks = [
        denoiser.get_submodule(fqn).register_forward_pre_hook(
            lambda _, args, fqn=fqn: inputs.setdefault(fqn, []).append(args[0].float())
        )
        for fqn in TEMPORAL_LINEARS
    ]
    denoiser.modulations(timesteps.to(denoiser.pos_embed.device))
    for hook in hooks:
        hook.remove()
    return {fqn: torch.cat(chunks)[: len(timesteps)] for fqn, chunks in inputs.items()}


def timestep_table(denoiser: STDiT, num_steps: int) -> TimestepTable:
    """The table holds t and t0, from which every block's modulation is a sum; `prepare_timestep` keeps the sums too."""
    layers = list(TIMESTEP_LINEARS)
    return TimestepTable(
        numbers=num_steps * 7 * denoiser.hidden_size,
        reused_numbers=num_steps * (1 + 6 * len(denoiser.blocks)) * denoiser.hidden_size,
        layers=layers,
        weights=sum(parameter.numel() for fqn in layers for parameter in denoiser.get_submodule(fqn).parameters()),
    )


def example_inputs(denoiser: STDiT) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for one video on the device of the weights: x [1, c, T, H, W], timestep [1] long, y [1, 1, L, D]."""
    like = denoiser.y_embedder.y_embedding
    x = like.new_zeros(1, denoiser.in_channels, *denoiser.input_size)
    return x, torch.zeros(1, dtype=torch.long, device=like.device), torch.zeros_like(like)[None, None]


STDIT = register(
    Family(
        name="STDiT",
        denoisers=("vdq.models.stdit.STDiT",),
        quantizable=("blocks.*",),  # embedders, t_block and final layer stay in full precision, as in the paper
        packed=("*.cross_attn.kv_linear",),
        attention_groups=attention_groups,
        token_orders=token_orders,
        temporal_features=temporal_features,
        timestep_table=timestep_table,
        example_inputs=example_inputs,
    )
)
