"""Uniform affine quantization: ranges, qparams, quantize, dequantize. Pure fp32 functions."""

from typing import NamedTuple

import torch
from torch import Tensor

from vdq.errors import UserError

MIN_BITS, MAX_BITS = 2, 16
EPS = 1e-6

# Dimensions over which a range is taken; what is left is the shape of the qparams, kept broadcastable.
_REDUCED = {
    "per_tensor": lambda x: tuple(range(x.dim())),
    "per_channel": lambda x: tuple(range(1, x.dim())),
    "per_token": lambda x: (-1,),
    "token_shared": lambda x: (0, -1),
}
GRANULARITIES = tuple(_REDUCED)


class QParams(NamedTuple):
    """Scale (step size D) and zero point z, both fp32 and of one shape that broadcasts against the quantized tensor."""

    scale: Tensor
    zero_point: Tensor


def check_bits(bits: int, name: str = "bits") -> int:
    """Return `bits`, or raise UserError when it is not an integer in 2..16."""
    if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise UserError(f"{name}={bits} must be an integer in {MIN_BITS}..{MAX_BITS}")
    return bits


def code_range(bits: int, symmetric: bool = False) -> tuple[int, int]:
    """First and last code: 0..2^n-1, or -2^(n-1)..2^(n-1)-1 when symmetric."""
    check_bits(bits)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def tensor_range(x: Tensor, granularity: str = "per_tensor") -> tuple[Tensor, Tensor]:
    """Minimum and maximum of x as fp32, reduced dimensions kept with size 1.

    per_tensor: all of x. per_channel: each row of a weight [out, in]. per_token: the last dimension. token_shared:
    ViDiT-Q's statistic of x [B, n, C], one range per token index over batch and channels jointly.
    """
    if granularity not in _REDUCED:
        raise UserError(f"granularity={granularity} must be one of {', '.join(GRANULARITIES)}")
    dims = _REDUCED[granularity](x)
    return x.amin(dims, keepdim=True).float(), x.amax(dims, keepdim=True).float()


def qparams_from_range(lo: Tensor, hi: Tensor, *, bits: int, symmetric: bool = False, eps: float = EPS) -> QParams:
    """Min-max qparams of the ranges [lo, hi], of any one shape.

    With m = min(lo, 0) and M = max(hi, 0): D = (M - m) / (2^n - 1), z = round(-m / D); symmetric: D = max(-m, M) /
    (2^(n-1) - 1), z = 0. Each D is at least `eps` by itself: upstream replaces the whole tensor as soon as one D is
    smaller, which is not reproduced. Raises UserError for bits outside 2..16.
    """
    first, last = code_range(bits, symmetric)
    m, M = lo.float().clamp(max=0), hi.float().clamp(min=0)
    if symmetric:
        scale = (torch.maximum(-m, M) / last).clamp(min=eps)
        return QParams(scale, torch.zeros_like(scale))
    scale = ((M - m) / (last - first)).clamp(min=eps)
    return QParams(scale, torch.round(-m / scale))


def quantize(x: Tensor, qparams: QParams, *, bits: int, symmetric: bool = False) -> Tensor:
    """Codes q = clamp(round(x / D) + z), integers held in fp32; half rounds to even."""
    first, last = code_range(bits, symmetric)
    return torch.clamp(torch.round(x.float() / qparams.scale) + qparams.zero_point, first, last)


def dequantize(q: Tensor, qparams: QParams) -> Tensor:
    """(q - z) * D in fp32."""
    return (q.float() - qparams.zero_point) * qparams.scale


def fake_quantize(x: Tensor, qparams: QParams, *, bits: int, symmetric: bool = False) -> Tensor:
    """dequantize(quantize(x))."""
    return dequantize(quantize(x, qparams, bits=bits, symmetric=symmetric), qparams)
