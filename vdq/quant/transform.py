"""What happens to a layer's input before it is quantized, and to its weight so that the product stays the same.

x' = rotate((x - shift) / s) and W' = rotate(W s): x' W'^T + shift W^T = x W^T. The first term is quantized, the second
is known before sampling and added as a correction.
"""

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.quant.rotation import hadamard


def transform_input(x: Tensor, shift: Tensor | None, smoothing: Tensor | None, rotation: int) -> Tensor:
    """x' in fp32: x [..., in], shift and smoothing [in] of one step or None, rotation 0 for none -> [..., in]."""
    x = x.float()
    if shift is not None:
        x = x - shift
    if smoothing is not None:
        x = x / smoothing
    return hadamard(x, rotation) if rotation else x


def transform_weight(weight: Tensor, smoothing: Tensor | None, rotation: int = 0, out_rotation: int = 0) -> Tensor:
    """W' in fp32 (paper Eq. 2 for s): weight [out, in], smoothing [in] of one range or None -> [out, in].

    out_rotation rotates the output, which is not undone here: the layer behind expects it
    (vdq.methods.static_plus.folding).
    """
    weight = rotate_output(weight.detach().float(), out_rotation)
    if smoothing is not None:
        weight = weight * smoothing
    return hadamard(weight, rotation) if rotation else weight


def restore_weight(transformed: Tensor, smoothing: Tensor | None, rotation: int = 0, out_rotation: int = 0) -> Tensor:
    """Inverse of `transform_weight`."""
    weight = hadamard(transformed, rotation) if rotation else transformed
    return rotate_output(weight if smoothing is None else weight / smoothing, out_rotation)


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
