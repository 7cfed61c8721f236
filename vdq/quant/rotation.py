"""Block Hadamard rotation of channels: spreads what few channels hold over all channels of a block."""

from functools import cache

import torch
from torch import Tensor

DENSE = 128


def check_block(block: int, width: int, name: str = "rotation") -> int:
    """Return `block`, or raise ValueError unless it is a power of two that divides `width`."""
    if not isinstance(block, int) or block < 1 or block & (block - 1) or width % block:
        raise ValueError(f"{name}={block} must be a power of two that divides the {width} channels")
    return block


def fitting_block(width: int, block: int) -> int:
    """The largest power of two that divides `width` and is at most `block`."""
    return min(block, width & -width)


def hadamard(x: Tensor, block: int) -> Tensor:
    """x H of every `block` consecutive channels: [..., C] -> [..., C] in the dtype of x.

    H is Sylvester's Hadamard matrix over sqrt(block), symmetric and orthogonal: its own inverse, and (x H)(W H)^T is
    x W^T (DVD-Quant's ARQ [S]; blocks of 128 for 1152 and 4608 channels [I], spec/dvd_quant_and_qvd.md 3.3). Up to 128
    channels by one matrix product, which is some ten times faster than log2(128) passes over memory; larger blocks add
    a pass for every doubling. Raises ValueError unless `block` is a power of two that divides C.
    """
    check_block(block, x.shape[-1])
    inner = min(block, DENSE)
    y, distance = x.reshape(-1, inner) @ _matrix(inner).to(x), inner
    while distance < block:
        first, second = y.reshape(-1, 2, distance).unbind(1)
        y = torch.stack([first + second, first - second], 1) * 0.5**0.5
        distance *= 2
    return y.reshape(x.shape)


@cache
def _matrix(size: int) -> Tensor:
    """H of one block, fp64 [size, size]."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) * 0.5**0.5
    return matrix
