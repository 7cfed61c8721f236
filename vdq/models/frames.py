"""Decoded videos as frames of bytes."""

import torch
from torch import Tensor

from vdq.errors import UserError


def to_uint8(video: Tensor) -> Tensor:
    """Frames of a decoded video: floating [...,3,T,H,W] in -1..1 -> uint8 [...,T,H,W,3].

    As Open-Sora 1.0 saves its samples (`opensora/datasets/utils.py:15-35`): clamp to -1..1, (x + 1) / 2, * 255 + 0.5,
    clamp to 0..255, truncate. The arithmetic stays in the tensor's dtype (fp16 differs from fp32 by one level in about
    4% of the pixels); unlike upstream the input is left as it is.

    Raises:
        UserError: on another shape, an integer dtype, or NaN, whose uint8 value would be arbitrary.
    """
    if not video.is_floating_point() or video.ndim < 4 or video.shape[-4] != 3:
        raise UserError(f"video is {video.dtype} {tuple(video.shape)}; only a floating [...,3,T,H,W] is allowed")
    if video.isnan().any():
        raise UserError(f"video holds {int(video.isnan().sum())} NaN values; only numbers are allowed")
    unit = video.clamp(-1, 1).add_(1).div_(2)
    return unit.mul_(255).add_(0.5).clamp_(0, 255).movedim(-4, -1).to(torch.uint8).contiguous()
