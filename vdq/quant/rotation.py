"""Block Hadamard rotation of channels: spreads what few channels hold over all channels of a block."""

from __future__ import annotations

import ctypes
import logging
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vdq.compiled import shared_library
from vdq.errors import UserError

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("rotation.cpp")
DENSE = 128


def check_block(block: int, width: int, name: str = "rotation") -> int:
    """Return `block`, or raise UserError unless it is a power of two that divides `width`."""
    if not isinstance(block, int) or block < 1 or block & (block - 1) or width % block:
        raise UserError(f"{name}={block} must be a power of two that divides the {width} channels")
    return block


def fitting_block(width: int, block: int) -> int:
    """The largest power of two that divides `width` and is at most `block`."""
    return min(block, width & -width)


def hadamard(x: Tensor, block: int) -> Tensor:
    """x H of every `block` consecutive channels: [..., C] -> [..., C] in the dtype of x.

    H is Sylvester's Hadamard matrix over sqrt(block), symmetric and orthogonal: its own inverse, and (x H)(W H)^T is
    x W^T (DVD-Quant's ARQ [S]; blocks of 128 for 1152 and 4608 channels [I]). On the CPU by log2(block) additions a
    channel, whose bits depend neither on the processor nor on the number of rows. Elsewhere up to 128 channels by one
    matrix product, where passes over memory cost more than arithmetic; larger blocks add a pass for every doubling.
    Raises UserError unless `block` is a power of two that divides C.
    """
    check_block(block, x.shape[-1])
    if x.device.type in ("cpu", "meta"):
        return _fast_transform(x, block)
    inner = min(block, DENSE)
    y, distance = x.reshape(-1, inner) @ _matrix(inner).to(x), inner
    while distance < block:
        first, second = y.reshape(-1, 2, distance).unbind(1)
        y = torch.stack([first + second, first - second], 1) * 0.5**0.5
        distance *= 2
    return y.reshape(x.shape)


@torch.library.custom_op("vdq::hadamard", mutates_args=())
def _fast_transform(x: Tensor, block: int) -> Tensor:
    """One operator, so that a traced graph holds it as it holds a product."""
    run = _library() if x.dtype == torch.float32 else None
    if run is None:
        return _butterflies(x, block)
    x = x.contiguous()
    y = torch.empty_like(x)
    run.hadamard(x.data_ptr(), y.data_ptr(), x.numel() // block, block, block**-0.5, torch.get_num_threads())
    return y


@_fast_transform.register_fake
def _(x: Tensor, block: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _butterflies(x: Tensor, block: int) -> Tensor:
    """The same with torch, to the bit: channels first, so that every addition is of whole rows."""
    y = x.reshape(-1, block).T
    for _ in range(block.bit_length() - 1):
        first, second = y.chunk(2)
        y = torch.stack([first + second, first - second], 1).flatten(0, 1)
    return (y.T * block**-0.5).reshape(x.shape)


@cache
def _library() -> ctypes.CDLL | None:
    """rotation.cpp, or None where nothing compiles, which the log tells."""
    try:
        loaded = ctypes.CDLL(str(shared_library(SOURCE)))
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("rotations run in torch, to the same bits but slower, as nothing compiles here: %s", error)
        return None
    loaded.hadamard.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_float, ctypes.c_int32]
    loaded.hadamard.restype = None
    return loaded


@cache
def _matrix(size: int) -> Tensor:
    """H of one block, fp64 [size, size]."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) * 0.5**0.5
    return matrix
