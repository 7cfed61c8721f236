"""Activation scales measured in the current tensor for each video and channel: DVD-Quant's ARQ (arXiv 2505.18663).

Second-hand (tags as in vdq.methods): s_j = max |X_j| of the current, rotated tensor and X ~ Q(X / s) s, eq. 10,
are [S], and so is that the authors' kernels share a scale among a block of channels. That one video and guidance half
is the tensor is [I]: its result then does not depend on the batch. Q is symmetric, as s has no sign [I].
"""

from torch import Tensor

from vdq.quant.affine import EPS


def block_max(absmax: Tensor, block: int) -> Tensor:
    """The largest of every `block` consecutive channels at each of them: [..., C] -> [..., C]."""
    return absmax.unflatten(-1, (-1, block)).amax(-1).repeat_interleave(block, -1)


def absmax_scale(absmax: Tensor, bits: int | Tensor) -> Tensor:
    """D = max|x| / (2^(n-1) - 1) of the symmetric quantizer; bits broadcast to absmax."""
    return (absmax / (2 ** (bits - 1) - 1)).clamp(min=EPS)


def fake_quantize_within(x: Tensor, scale: Tensor) -> Tensor:
    """round(x / D) D in fp32. Nothing to clamp: D is of a maximum that no |x| exceeds, so codes end at 2^(n-1) - 1."""
    return (x / scale).round_().mul_(scale)
