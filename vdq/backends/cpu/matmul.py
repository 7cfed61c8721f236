"""Products of unsigned with signed bytes on the CPU: summed in 32-bit integers, then rescaled to fp32.

Three kernels of one contract, the fastest first. Without VNNI, oneDNN adds pairs of products in 16 bits, which saturate
for 8-bit weights with 8-bit codes, and for these only. So a kernel is tried on the extreme codes that a layer can have
before the layer uses it.
"""

import subprocess
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vdq.backends.cpu.native import address, gemm_library

# Tokens are taken in blocks of so many sums, which then stay in the cache.
BLOCK = 2**19


class OneDnnMatmul:
    """y = x_scale * scale_o * sum_i (q_i - zero) w_oi [+ bias_o], fp32 [n, out], for w int8 [out, in]; added in place
    to `into` if given.

    q uint8 [n, in], 0 <= zero <= 255, scale fp32 [out], bias fp32 [out] or None. Signed q would run a reference kernel
    a hundred times slower where the CPU has no AMX.
    """

    name = "oneDNN"

    def __init__(self, weight: Tensor) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        # Weights are symmetric: the operation takes zero points of weights, and ignores them.
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)

    def __call__(
        self,
        q: Tensor,
        zero: int,
        scale: Tensor,
        *,
        x_scale: float = 1.0,
        bias: Tensor | None = None,
        into: Tensor | None = None,
    ) -> Tensor:
        product = (q, x_scale, zero, self.packed, scale, self.zeros)
        plain = (1.0, 0, torch.float32)  # scale, zero point and dtype of the output
        if into is None:
            return torch.ops.onednn.qlinear_pointwise(*product, bias, *plain, "none", [], "")
        return torch.ops.onednn.qlinear_pointwise.binary(
            *product, into, bias, *plain, 1.0, 0, "sum", 1.0, "none", [], ""
        )

    def gelu_codes(
        self, q: Tensor, zero: int, scale: Tensor, *, x_scale: float, bias: Tensor | None, y_scale: float, y_zero: int
    ) -> Tensor:
        """Codes uint8 [n, out] of GELU(y), tanh approximation. Rounds half to even after the zero point is added."""
        product = (q, x_scale, zero, self.packed, scale, self.zeros)
        return torch.ops.onednn.qlinear_pointwise(*product, bias, y_scale, y_zero, torch.uint8, "gelu", [], "tanh")

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def __reduce__(self) -> tuple:  # torch copies and pickles no packed tensor
        return OneDnnMatmul, (self.packed.to_dense().T.contiguous(),)


class Int16Matmul:
    """The product with both factors widened to 16 bits, compiled (gemm.cpp): exact without VNNI."""

    name = "int16"
    gelu_codes = None  # it writes fp32 only

    def __init__(self, weight: Tensor) -> None:
        self.nbytes = weight.nbytes
        self.shape, panel = weight.shape, gemm_library().panel()
        outputs, inputs = weight.shape
        padded = F.pad(weight, (0, inputs % 2, 0, -outputs % panel))
        self.packed = padded.view(len(padded) // panel, panel, -1, 2).transpose(1, 2).contiguous()
        self.sums = weight.sum(1, dtype=torch.int32)

    def __call__(
        self,
        q: Tensor,
        zero: int,
        scale: Tensor,
        *,
        x_scale: float = 1.0,
        bias: Tensor | None = None,
        into: Tensor | None = None,
    ) -> Tensor:
        outputs, inputs = self.shape
        y = torch.empty(len(q), outputs) if into is None else into
        tensors = (q, self.packed, self.sums, x_scale * scale, bias, y)
        sizes = (len(q), inputs, outputs, zero, into is not None, torch.get_num_threads())
        gemm_library().multiply(*map(address, tensors), *sizes)
        return y


class ChunkedMatmul:
    """The product by torch's own of fp32, exact in chunks of input channels: it runs everywhere."""

    name = "fp32_chunks"
    gelu_codes = None  # it writes 32-bit sums only
    # Of products of -128..127: sums of at most 2^24, up to which fp32 has every whole number.
    CHUNK = 2**10

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.nbytes = weight, weight.nbytes
        self.sums = weight.sum(1, dtype=torch.int32)

    def __call__(
        self,
        q: Tensor,
        zero: int,
        scale: Tensor,
        *,
        x_scale: float = 1.0,
        bias: Tensor | None = None,
        into: Tensor | None = None,
    ) -> Tensor:
        signed = (q ^ 128).view(torch.int8)  # q - 128
        y, rows = torch.empty(len(q), len(self.weight)), max(1, BLOCK // len(self.weight))
        chunks = [chunk.float().T for chunk in self.weight.split(self.CHUNK, 1)]
        for block, out in zip(signed.split(rows), y.split(rows), strict=True):
            sums = torch.zeros_like(out, dtype=torch.int32).sub_(self.sums, alpha=zero - 128)
            for part, chunk in zip(block.split(self.CHUNK, 1), chunks, strict=True):
                sums += torch.mm(part.float(), chunk).int()
            torch.mul(sums, x_scale * scale, out=out)
        y = y if bias is None else y.add_(bias)
        return y if into is None else into.add_(y)


KERNELS = {kernel.name: kernel for kernel in (OneDnnMatmul, Int16Matmul, ChunkedMatmul)}
Matmul = OneDnnMatmul | Int16Matmul | ChunkedMatmul


@cache
def failure(name: str, weight_bits: int = 8, act_bits: int = 8) -> str | None:
    """Why a kernel cannot multiply signed weights with unsigned codes of so many bits here, or None: it is missing, or
    sums of their extreme codes are wrong.
    """
    try:
        exact = all(_exact(KERNELS[name], weight_bits, act_bits, *shape) for shape in PROBES)
    except (AttributeError, RuntimeError, TypeError, OSError, subprocess.CalledProcessError) as error:
        return str(error).partition("\n")[0]
    return None if exact else f"wrong sums of {weight_bits}-bit signed weights with {act_bits}-bit codes on this CPU"


# Tokens, inputs and outputs; kernels may depend on them.
PROBES = ((3, 96, 4), (1, 33, 7), (50, 1153, 40))


def _exact(kernel: type[Matmul], weight_bits: int, act_bits: int, tokens: int, inputs: int, outputs: int) -> bool:
    """Whether the products of extreme codes are those of int64, rounded to fp32, also added to what is there."""
    low, top = -(2 ** (weight_bits - 1)), 2**act_bits - 1
    q = torch.tensor([top, 0, top - 1], dtype=torch.uint8).repeat(tokens)[:tokens, None].expand(-1, inputs).contiguous()
    codes = torch.tensor([-low - 1, low, low + 1, 1], dtype=torch.int8)
    weight = codes.repeat(outputs)[:outputs, None].expand(-1, inputs).contiguous()
    matmul, scale = kernel(weight), torch.ones(outputs)
    found = matmul(q, 3, scale, into=matmul(q, 3, scale, bias=torch.zeros(outputs)))
    return torch.equal(found, 2 * ((q.long() - 3) @ weight.long().T).float())


@cache
def speedup(name: str) -> float:
    """How many times as fast as torch's fp32 product a kernel is here, about: 256 tokens, 1152 to 1152 channels, the
    best of a few calls of each in turn, by the time of one core, of which other programs take nothing.
    """
    q, weight = torch.zeros(256, 1152, dtype=torch.uint8), torch.zeros(1152, 1152, dtype=torch.int8)
    x, w, matmul, scale = q.float(), weight.float().T, KERNELS[name](weight), torch.ones(1152)
    calls, threads = (lambda: torch.mm(x, w), lambda: matmul(q, 0, scale)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        full, ours = zip(*([_seconds(call) for call in calls] for _ in range(5)), strict=True)
    finally:
        torch.set_num_threads(threads)
    return min(full) / min(ours)


def _seconds(call: Callable[[], Tensor]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start
