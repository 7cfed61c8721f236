"""Shared pieces of what happens around quantizers; the transforms themselves are vdq.quant.parts.inputs."""

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.quant.rotation import hadamard


def rotate_output(weight: Tensor, rotation: int) -> Tensor:
    """The weight [out, in] of a layer whose output is rotated; 0 for none."""
    return hadamard(weight.T, rotation).T.contiguous() if rotation else weight


def shift_correction(weight: Tensor, shift: Tensor) -> Tensor:
    """shift W^T, what the shift takes from the output: weight [out, in], shift [Ka, in] -> fp32 [Ka, out]."""
    return (shift.double() @ weight.detach().double().T).float()


def in_half(table: Tensor, name: str) -> Tensor:
    """A table of shifts or corrections as it is stored, fp16. Raises UserError for values beyond its range."""
    half = table.half()
    if not half.is_meta and not bool(torch.isfinite(half).all()):
        raise UserError(f"{name} reaches {float(table.abs().max()):g}, half precision holds at most 65504")
    return half


def video_rows(x: Tensor, rows: int) -> Tensor:
    """[..., C] -> [B, rows, C], the token rows of each video in the order in which the layer gets them.

    Raises UserError when they are not whole videos.
    """
    count = x.shape[:-1].numel()
    if count % rows:
        raise UserError(f"act_group is for videos of {rows} token rows, got {count} rows, which are not whole videos")
    return x.reshape(-1, rows, x.shape[-1])
