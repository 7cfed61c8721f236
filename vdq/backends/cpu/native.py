"""Machine code of int8_cpu, compiled once for this machine: passes.cpp and gemm.cpp."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vdq.backends.cpu.passes import Codes, Grid, Source, TorchPasses
from vdq.compiled import shared_library
from vdq.models.stdit import LAYER_NORM_EPS

PASSES, GEMM = (Path(__file__).with_name(name) for name in ("passes.cpp", "gemm.cpp"))


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
    """Does in compiled code what TorchPasses does. Raises OSError or subprocess.CalledProcessError where it cannot be
    compiled.
    """

    name = "compiled"

    def __init__(self) -> None:
        passes_library()

    def quantize(self, source: Source, grids: list[Grid], out: list[Codes] | None = None) -> list[Codes]:
        x = source.x.contiguous()
        batch, rows, channels = x.shape
        out = out or [Codes.empty(batch * rows, channels, grid) for grid in grids]
        position = None if source.position is None else source.position.contiguous()
        eps = -1.0 if source.norm is None else LAYER_NORM_EPS
        swap = source.swap or (0, 0)
        read = CRows(address(x), batch, rows, channels, *swap, address(position), eps, source.gelu)
        kept, written = [], (CGrid * len(grids))()  # what is pointed to lives until the call is over
        for number, (grid, codes) in enumerate(zip(grids, out, strict=True)):
            folded = (None, None) if source.norm is None else source.norm.folded(grid)[::-1]
            tensors = (*folded, grid.divisor, codes.p, codes.sums, codes.scale, codes.shift)
            half = grid.middle if grid.symmetric else 0
            written[number] = CGrid(*map(address, tensors), grid.zero or 0, grid.top, half)
            kept.append(tensors)
        passes_library().quantize(byref(read), written, len(grids), torch.get_num_threads())
        return out

    def finish(
        self, y: Tensor, codes: Codes, w_sums: Tensor, offset: Tensor | None, bias: Tensor, into: Tensor | None
    ) -> Tensor:
        out = y if into is None else into
        sums = None if offset is None else codes.sums
        matrices, vectors = (y, into, out), (codes.scale, codes.shift, w_sums, sums, offset, bias)
        finish, threads = passes_library().finish, torch.get_num_threads()
        finish(*map(address, matrices), *y.shape, *map(address, vectors), threads)
        return out


Passes = NativePasses | TorchPasses


def address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


@cache
def passes_library() -> ctypes.CDLL:
    """Compiled passes.cpp; raises OSError or subprocess.CalledProcessError where nothing compiles."""
    loaded = ctypes.CDLL(str(shared_library(PASSES)))
    loaded.quantize.argtypes = [POINTER(CRows), POINTER(CGrid), c_int64, c_int32]
    loaded.finish.argtypes = [c_void_p] * 3 + [c_int64] * 2 + [c_void_p] * 6 + [c_int32]
    loaded.quantize.restype = loaded.finish.restype = None
    return loaded


@cache
def gemm_library() -> ctypes.CDLL:
    """Compiled gemm.cpp, in the same way; it needs AVX2."""
    loaded = ctypes.CDLL(str(shared_library(GEMM)))
    loaded.multiply.argtypes = [c_void_p] * 6 + [c_int64] * 3 + [c_int32] * 3
    loaded.multiply.restype, loaded.panel.restype = None, c_int64
    return loaded
