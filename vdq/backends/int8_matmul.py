"""Products of unsigned with signed bytes on the CPU: summed in 32-bit integers, then rescaled to fp32.

Two kernels of one contract. oneDNN's has the weight in its own layout and rescales before it writes; its operations
are private to torch, so both are tried on extreme codes before they are used.
"""

from functools import cache

import torch
from torch import Tensor

# `_int_mm` takes tokens in blocks of so many sums, which then stay in the cache.
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


class IntMmMatmul:
    """The same product by `torch._int_mm`, of signed bytes, with the zero point and the rescale in separate passes."""

    name = "_int_mm"
    gelu_codes = None  # it writes 32-bit sums only

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
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
        for block, out in zip(signed.split(rows), y.split(rows), strict=True):
            products = torch._int_mm(block, self.weight.T).sub_(self.sums, alpha=zero - 128)
            torch.mul(products, x_scale * scale, out=out)
        y = y if bias is None else y.add_(bias)
        return y if into is None else into.add_(y)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


KERNELS = {kernel.name: kernel for kernel in (OneDnnMatmul, IntMmMatmul)}


@cache
def failure(name: str) -> str | None:
    """Why a kernel cannot be used here, or None: operations that are missing, or sums of extreme codes that saturate,
    as sums of two products do in 16 bits on CPUs without VNNI.
    """
    q = torch.tensor([[255], [0], [254]], dtype=torch.uint8).expand(3, 96).contiguous()
    weight = torch.tensor([[127], [-128], [-127], [1]], dtype=torch.int8).expand(4, 96).contiguous()
    exact = (q.int() - 3) @ weight.int().T
    try:
        matmul = KERNELS[name](weight)
        found = matmul(q, 3, torch.ones(4), into=matmul(q, 3, torch.ones(4), bias=torch.zeros(4)))
    except (AttributeError, RuntimeError, TypeError) as error:
        return str(error).partition("\n")[0]
    return None if torch.equal(found, 2 * exact.float()) else "it does not multiply extreme codes exactly on this CPU"
