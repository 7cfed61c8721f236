"""Classifier-free guidance as in Open-Sora 1.0 (spec/opensora.md section 6.1)."""

import torch
from torch import Tensor, nn

from vdq.models.base import Conditions


def guided(
    denoiser: nn.Module,
    x: Tensor,
    timestep: int,
    conditions: Conditions,
    *,
    guidance_scale: float = 7.0,
    guidance_channels: int = 3,
) -> tuple[Tensor, Tensor]:
    """One call of the denoiser on [x; x] and [captions; null captions], mixed into one estimate per prompt.

    The first `guidance_channels` channels of the noise estimate are null + guidance_scale * (caption - null); the other
    channels and the variance logits are those of the caption half. The mask keeps its n rows: the null caption of a
    prompt is cut to that prompt's length. x [n, c, T, H, W]; returns (eps, variance logits), both [n, c, T, H, W].
    Raises ValueError when guidance_channels is not in 0..c or x and conditions differ in n.
    """
    count, channels = x.shape[:2]
    if not 0 <= guidance_channels <= channels:
        raise ValueError(f"guidance_channels={guidance_channels} must be in 0..{channels}, the channels of x")
    if count != len(conditions):
        raise ValueError(f"x has {count} rows, conditions have {len(conditions)}: they must be equal")
    y = torch.cat([conditions.y, conditions.null.to(conditions.y.dtype).expand_as(conditions.y)])
    timesteps = torch.full((2 * count,), timestep, dtype=torch.long, device=x.device)
    output = denoiser(torch.cat([x, x]), timesteps, y, conditions.mask)
    eps, variance = output[:count].chunk(2, dim=1)
    caption, rest = eps.split([guidance_channels, channels - guidance_channels], dim=1)
    null = output[count:, :guidance_channels]
    return torch.cat([null + guidance_scale * (caption - null), rest], dim=1), variance
