"""Integer execution on CPUs with VNNI: 8-bit products, everything that is static folded before sampling."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from vdq.backends.base import Backend
from vdq.backends.int8_matmul import KERNELS, IntMmMatmul, OneDnnMatmul, failure
from vdq.backends.integer import BITS, IntegerLinear, unsupported
from vdq.quant.affine import code_range
from vdq.quant.linear import LayerSpec

log = logging.getLogger(__name__)
AUTO = "auto"
MIDDLE = 2 ** (BITS - 1)
# Tokens are quantized in blocks of so many numbers, whose fp32 intermediates stay in the cache.
BLOCK = 2**17

Matmul = OneDnnMatmul | IntMmMatmul


class Int8CpuBackend(Backend):
    """Codes of 2..8 bits held in bytes, symmetric or not, static or dynamic.

    `kernel`: "oneDNN", "_int_mm", or "auto", the first of them that works here. All time ranges' weights are kept, a
    byte each. Raises ValueError for another value and for a kernel that does not work here.
    """

    name = "int8_cpu"
    simulated = False

    def __init__(self, kernel: str = AUTO) -> None:
        if kernel not in (AUTO, *KERNELS):
            raise ValueError(f"backend.kernel={kernel} must be one of {', '.join((AUTO, *KERNELS))}")
        failures = {name: failure(name) for name in (KERNELS if kernel == AUTO else [kernel])}
        working = [name for name, why in failures.items() if why is None]
        reasons = "; ".join(f"{name}: {why}" for name, why in failures.items() if why is not None)
        if not working:
            raise ValueError(f"backend.kernel={kernel} cannot run here ({reasons})")
        if reasons:
            log.warning("int8_cpu: runs %s (%s)", working[0], reasons)
        self.kernel = KERNELS[working[0]]

    @property
    def arithmetic(self) -> str:
        return f"{self.name} (integer, {self.kernel.name})"

    def supports(self, layer: LayerSpec) -> str | None:
        if self.kernel is IntMmMatmul and layer.weight.shape[1] == 1:
            return "in_features=1 must be at least 2, torch._int_mm leaves its result unwritten (pytorch issue 195066)"
        return unsupported(layer)

    def build(self, layer: LayerSpec) -> "Int8Linear":
        return (StaticInt8Linear if layer.params.static else DynamicInt8Linear)(layer, self.kernel)


class WeightSet(NamedTuple):
    """Weights of one range, qw - zw = w + offset: w as signed bytes inside `matmul`; offset, scale, sums of w fp32
    [out]. offset is None where w alone holds the difference: symmetric weights, and any of at most 7 bits.
    """

    matmul: Matmul
    scale: Tensor
    offset: Tensor | None
    sums: Tensor


def weight_set(layer: LayerSpec, range_: int, kernel: type[Matmul]) -> WeightSet:
    """Codes of one range, split into what fits signed bytes and a whole number a channel."""
    codes = layer.params.weight_codes(layer.weight, range_)
    scale, zero_point = (values[:, 0] for values in layer.params.weight_qparams(range_))
    w, offset = codes - zero_point[:, None], None
    if w.numel() and (w.amin() < -MIDDLE or w.amax() >= MIDDLE):
        w, offset = codes - MIDDLE, MIDDLE - zero_point
    return WeightSet(kernel(w.to(torch.int8)), scale.contiguous(), offset, w.sum(1))


def unsigned(signed: Tensor) -> Tensor:
    """p from p - middle, in place. torch converts floats to signed bytes five times faster than to unsigned ones."""
    return signed.view(torch.uint8).bitwise_xor_(MIDDLE)


class Int8Linear(IntegerLinear):
    """Inputs become unsigned bytes p = q - first code, so that zero points are 0..255 whatever the format."""

    def __init__(self, layer: LayerSpec, kernel: type[Matmul]) -> None:
        super().__init__(layer)
        self.sets = [weight_set(layer, range_, kernel) for range_ in range(self.params.num_weight_ranges)]
        self.block_rows = max(1, BLOCK // self.in_features)
        self.first, self.last = code_range(self.params.act_bits, self.params.symmetric_acts)
        # Sums over a token's codes are a product with ones: exact, and as fast as the weights' product is.
        self.ones = kernel(torch.ones(1, self.in_features, dtype=torch.int8))

    def code_sums(self, codes: Tensor, zero: int) -> Tensor:
        """sum_i (p_i - zero): codes [n, in] -> fp32 [n], whole numbers below 2^24 and so exact."""
        return self.ones(codes, zero, torch.ones(1)).squeeze(1)

    def exact_products(self, codes: Tensor, zero: int) -> Tensor:
        """sum_i (p_i - zero) w_i as int64 [n, out], by the kernel that computes the layer's output.

        Columns are taken some at a time, the others are left at the zero point: sums below 2^24 are exact in fp32.
        """
        matmul, scale, total = self.sets[self.range_].matmul, torch.ones(self.out_features), 0
        for columns in torch.arange(self.in_features).split(2 ** (24 - 2 * BITS)):
            part = torch.full_like(codes, zero)
            part[:, columns] = codes[:, columns]
            total = total + matmul(part, zero, scale).long()
        return total

    @property
    def weight_bytes(self) -> int:
        return sum(weights.matmul.nbytes for weights in self.sets)


class StaticInt8Linear(Int8Linear):
    """Smoothing and scale are one division by a constant of the step, as in the simulation: the codes are the same.
    The zero point and the bias are added by the kernel.
    """

    def __init__(self, layer: LayerSpec, kernel: type[Matmul]) -> None:
        super().__init__(layer, kernel)
        scale, zero_point = self.params.step_act()
        s = self.params.step_smoothing()
        self.divisor = scale[:, None] if s is None else scale[:, None] * s  # [N, 1 or in]
        self.scales: list[float] = scale.tolist()
        self.zeros: list[int] = (zero_point - self.first).int().tolist()

    def product(self, x: Tensor) -> Tensor:
        codes, zero = self.quantize_input(x)
        weights, x_scale = self.sets[self.range_], self.scales[self.clock.step]
        y = weights.matmul(codes, zero, weights.scale, x_scale=x_scale, bias=self.bias)
        if weights.offset is not None:
            y.addr_(self.code_sums(codes, zero), weights.offset * weights.scale, alpha=x_scale)
        return y

    def quantize_input(self, x: Tensor) -> tuple[Tensor, int]:
        """Codes p, uint8 [n, in], and their zero point."""
        x, step = x.reshape(-1, self.in_features), self.clock.step
        zero, divisor = self.zeros[step], self.divisor[step]
        signed = torch.empty(x.shape, dtype=torch.int8)
        for block, codes in zip(x.split(self.block_rows), signed.split(self.block_rows), strict=True):
            steps = (block.float() / divisor).round_().clamp_(-zero, self.last - self.first - zero)
            codes.copy_(steps.add_(zero - MIDDLE))
        return unsigned(signed), zero

    def accumulators(self, x: Tensor) -> Tensor:
        codes, zero = self.quantize_input(x)
        acc, offset = self.exact_products(codes, zero), self.sets[self.range_].offset
        return acc if offset is None else acc + self.code_sums(codes, zero).long().outer(offset.long())


class DynamicInt8Linear(Int8Linear):
    """Range, scale and zero point of every token at run time. The kernel knows one zero point, so it gets the middle
    one; what a token's own differs from it is a correction of rank one.
    """

    def product(self, x: Tensor) -> Tensor:
        """(p - zero) (w + offset) = (p - middle) w + shift w + (p - zero) offset, with shift = middle - zero."""
        codes, shift, x_scale = self.quantize_input(x)
        weights = self.sets[self.range_]
        y = weights.matmul(codes, MIDDLE, weights.scale).addr_(shift, weights.sums * weights.scale)
        if weights.offset is not None:
            y.addr_(self.code_sums(codes, MIDDLE) + self.in_features * shift, weights.offset * weights.scale)
        return y.mul_(x_scale[:, None]) if self.bias is None else torch.addcmul(self.bias, y, x_scale[:, None], out=y)

    def quantize_input(self, x: Tensor) -> tuple[Tensor, ...]:
        """Codes p, uint8 [n, in]; middle - zero point and scale of every token, fp32 [n]."""
        shared = self.params.act_granularity == "token_shared"  # by rows that no block may part
        blocks = [x] if shared else x.reshape(-1, self.in_features).split(self.block_rows)
        signed, *qparams = (torch.cat(parts) for parts in zip(*map(self.quantize_block, blocks), strict=True))
        return unsigned(signed), *qparams

    def quantize_block(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of some tokens; the codes less the middle one, int8."""
        x = x.float()
        if self.params.smoothing is not None:
            x = x / self.params.smoothing[self.range_]
        scale, zero_point = self.token_qparams(x)
        shift = MIDDLE + self.first - zero_point
        codes = (x.reshape(-1, self.in_features) / scale).round_().sub_(shift)
        codes = codes.clamp_(-MIDDLE, self.last - self.first - MIDDLE)
        return codes.to(torch.int8, memory_format=torch.contiguous_format), shift.squeeze(1), scale.squeeze(1)

    def accumulators(self, x: Tensor) -> Tensor:
        codes, shift, _ = self.quantize_input(x)
        weights, shift = self.sets[self.range_], shift.long()
        acc = self.exact_products(codes, MIDDLE) + shift.outer(weights.sums.long())
        if weights.offset is None:
            return acc
        sums = self.code_sums(codes, MIDDLE).long() + self.in_features * shift
        return acc + sums.outer(weights.offset.long())
