"""The elementwise passes of int8_cpu as machine code: int8_passes.cpp, compiled once for this machine."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vdq.backends.int8_passes import Codes, Grid, Source
from vdq.compiled import shared_library
from vdq.models.stdit import LAYER_NORM_EPS

SOURCE = Path(__file__).with_name("int8_passes.cpp")


class CRows(Structure):
    _fields_ = [
        ("x", c_void_p),
        *((name, c_int64) for name in ("batch", "rows", "columns", "swap_a", "swap_b")),
        ("position", c_void_p),
        ("eps", c_float),
        ("gelu", c_int32),
    ]


class CGrid(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("mul", "add", "div", "codes", "sums", "scale", "shift")),
        *((name, c_int32) for name in ("zero", "top", "half")),
    ]


class NativePasses:
    """The same as TorchPasses. Raises OSError or subprocess.CalledProcessError where it cannot be compiled."""

    name = "compiled"

    def __init__(self) -> None:
        library()

    def quantize(self, source: Source, grids: list[Grid], out: list[Codes] | None = None) -> list[Codes]:
        x = source.x.contiguous()
        batch, rows, channels = x.shape
        out = out or [Codes.empty(batch * rows, channels, grid) for grid in grids]
        position = None if source.position is None else source.position.contiguous()
        eps = -1.0 if source.norm is None else LAYER_NORM_EPS
        swap = source.swap or (0, 0)
        read = CRows(_address(x), batch, rows, channels, *swap, _address(position), eps, source.gelu)
        kept, written = [], (CGrid * len(grids))()  # what is pointed to lives until the call is over
        for number, (grid, codes) in enumerate(zip(grids, out, strict=True)):
            folded = (None, None) if source.norm is None else source.norm.folded(grid)[::-1]
            tensors = (*folded, grid.divisor, codes.p, codes.sums, codes.scale, codes.shift)
            half = grid.middle if grid.symmetric else 0
            written[number] = CGrid(*map(_address, tensors), grid.zero or 0, grid.top, half)
            kept.append(tensors)
        library().quantize(byref(read), written, len(grids), torch.get_num_threads())
        return out

    def finish(
        self, y: Tensor, codes: Codes, w_sums: Tensor, offset: Tensor | None, bias: Tensor, into: Tensor | None
    ) -> Tensor:
        out = y if into is None else into
        sums = None if offset is None else codes.sums
        tensors = (codes.scale, codes.shift, w_sums, sums, offset, bias)
        library().finish(*map(_address, (y, into, out)), *y.shape, *map(_address, tensors), torch.get_num_threads())
        return out


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


@cache
def library() -> ctypes.CDLL:
    """The compiled source (vdq.compiled)."""
    loaded = ctypes.CDLL(str(shared_library(SOURCE)))
    loaded.quantize.argtypes = [POINTER(CRows), POINTER(CGrid), c_int64, c_int32]
    loaded.finish.argtypes = [c_void_p] * 3 + [c_int64] * 2 + [c_void_p] * 6 + [c_int32]
    loaded.quantize.restype = loaded.finish.restype = None
    return loaded
