"""Block Hadamard rotation of channels: spreads what few channels hold over all channels of a block."""

import torch
from torch import Tensor


def check_block(block: int, width: int, name: str = "rotation") -> int:
    """Return `block`, or raise ValueError unless it is a power of two that divides `width`."""
    if not isinstance(block, int) or block < 1 or block & (block - 1) or width % block:
        raise ValueError(f"{name}={block} must be a power of two that divides the {width} channels")
    return block


def fitting_block(width: int, block: int) -> int:
    """The largest power of two that divides `width` and is at most `block`."""
    return min(block, width & -width)


def hadamard(x: Tensor, block: int) -> Tensor:
    """x H of every `block` consecutive channels, in log2(block) passes: [..., C] -> [..., C] in the dtype of x.

    H is Sylvester's Hadamard matrix over sqrt(block), symmetric and orthogonal: its own inverse, and (x H)(W H)^T is
    x W^T (DVD-Quant's ARQ [S]; blocks of 128 for 1152 and 4608 channels [I], spec/dvd_quant_and_qvd.md 3.3). Raises
    ValueError unless `block` is a power of two that divides C.
    """
    check_block(block, x.shape[-1])
    y, distance = x, 1
    while distance < block:
        first, second = y.reshape(-1, 2, distance).unbind(1)
        y = torch.stack([first + second, first - second], 1)
        distance *= 2
    return (y * block**-0.5).reshape(x.shape)
