"""Quantized linear layers on the CPU, called with numbers or with codes that were made for them."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from vdq.backends.cpu.native import Passes
from vdq.backends.cpu.passes import MIDDLE, Codes, Grid, Source, write_codes
from vdq.backends.cpu.weights import KeptSets, RequantizedSets, WeightSet
from vdq.backends.integer import BITS, HostIntegerLinear
from vdq.quant.affine import QParams
from vdq.quant.linear import LayerSpec
from vdq.quant.parts import TokenGroupActs, TokenSharedActs

T = TypeVar("T")


class Int8Linear(HostIntegerLinear):
    """Inputs become unsigned bytes p = q - first code, so that zero points are 0..255 whatever the format."""

    def __init__(self, layer: LayerSpec, sets: KeptSets | RequantizedSets, passes: Passes) -> None:
        super().__init__(layer)
        self.sets, self.passes = sets, passes

    def forward(self, x: Tensor | Codes, compute: Callable[[Codes], T] | None = None) -> Tensor | T:
        """x [..., in] -> [..., out] in the dtype of x. In a fused block: codes -> compute(codes), which runs `multiply`
        its own way.
        """
        return super().forward(x) if compute is None else compute(x)

    def product(self, x: Tensor) -> Tensor:
        return self.multiply(self.quantize_input(x))

    def quantize_input(self, x: Tensor) -> Codes:
        """Codes of x [..., in]."""
        x = x.reshape(1, -1, self.in_features).float()
        return self.passes.quantize(Source(x), [self.grid()])[0]

    def grid(self) -> Grid:
        """How inputs are quantized at the clock's step."""
        raise NotImplementedError

    def multiply(self, codes: Codes, into: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        """Codes [n, in] -> y [n, out] fp32, or `into` + gate * y in place, gate fp32 [out]."""
        raise NotImplementedError

    def makes_gelu_codes(self, grid: Grid) -> bool:
        """Whether `gelu_codes` can run for such codes."""
        return False

    def exact_products(self, codes: Tensor, zero: int) -> Tensor:
        """sum_i (p_i - zero) w_i as int64 [n, out], by the kernel that computes the layer's output.

        Columns are taken some at a time, the others are left at the zero point: sums below 2^24 are exact in fp32.
        """
        matmul, scale, total = self.weights.matmul, torch.ones(self.out_features), 0
        for columns in torch.arange(self.in_features).split(2 ** (24 - 2 * BITS)):
            part = torch.full_like(codes, zero)
            part[:, columns] = codes[:, columns]
            total = total + matmul(part, zero, scale).long()
        return total

    def accumulators(self, x: Tensor) -> Tensor:
        codes = self.quantize_input(x)
        acc = self.exact_accumulators(codes)
        offset = self.weights.offset
        return acc if offset is None else acc + codes.sums.long().outer(offset.long())

    def exact_accumulators(self, codes: Codes) -> Tensor:
        """sum_i (p_i - zero) w_i, int64 [n, out]."""
        raise NotImplementedError

    @property
    def weights(self) -> WeightSet:
        """The weights of the clock's step."""
        return self.sets[self.range_]

    @property
    def weight_bytes(self) -> int:
        return self.sets.nbytes


class StaticInt8Linear(Int8Linear):
    """Smoothing and scale are one division by a constant of the step, as in the simulation: the codes are the same.
    The zero point and the bias are added by the kernel.
    """

    def __init__(self, layer: LayerSpec, sets: KeptSets | RequantizedSets, passes: Passes) -> None:
        super().__init__(layer, sets, passes)
        scale, zero_point = self.quant.act.step_qparams()
        s = self.smoothing
        divisor = scale[:, None] if s is None else scale[:, None] * s[self.quant.weight.steps]
        self.divisor = divisor.expand(-1, self.in_features).contiguous()  # [N, in]
        self.scales: list[float] = scale.tolist()
        first, _ = self.quant.act.code_bounds()
        self.zeros: list[int] = (zero_point - first).int().tolist()

    def grid(self) -> Grid:
        step = self.clock.step
        scale = self.scales[step] if self.smoothing is None else None
        return Grid(
            self.divisor[step],
            self.zeros[step],
            self.act_bits,
            self.quant.act.symmetric,
            self.weights.offset is not None,
            scale,
        )

    def multiply(self, codes: Codes, into: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        step, weights = self.clock.step, self.weights
        scale, bias = (_gated(values, gate) for values in (weights.scale, self.bias))
        y = weights.matmul(codes.p, self.zeros[step], scale, x_scale=self.scales[step], bias=bias, into=into)
        if weights.offset is not None:
            y.addr_(codes.sums, weights.offset * scale, alpha=self.scales[step])
        return y

    def makes_gelu_codes(self, grid: Grid) -> bool:
        plain = self.weights.offset is None and self.weights.matmul.gelu_codes is not None
        return plain and grid.scale is not None and grid.bits == BITS and not grid.sums

    def gelu_codes(self, codes: Codes, grid: Grid) -> Codes:
        """Codes of GELU(y), tanh approximation, for the next layer straight out of the product."""
        step, weights = self.clock.step, self.weights
        p = weights.matmul.gelu_codes(
            codes.p,
            self.zeros[step],
            weights.scale,
            x_scale=self.scales[step],
            bias=self.bias,
            y_scale=grid.scale,
            y_zero=grid.zero,
        )
        return Codes(p, None, None, None)

    def exact_accumulators(self, codes: Codes) -> Tensor:
        return self.exact_products(codes.p, self.zeros[self.clock.step])


class DynamicInt8Linear(Int8Linear):
    """Every token has its own scale and zero point, from its range at run time or from its group. The kernel knows one
    zero point, so it gets the middle one; what a token's own differs from it is a correction of rank one.
    """

    def grid(self) -> Grid:
        smoothing = None if self.smoothing is None else self.smoothing[self.range_]
        return Grid(smoothing, None, self.act_bits, self.quant.act.symmetric, self.weights.offset is not None)

    def quantize_input(self, x: Tensor) -> Codes:
        if not isinstance(self.quant.act, TokenSharedActs | TokenGroupActs):
            return super().quantize_input(x)
        # By the place of a row in the batch, which no pass over rows knows.
        grid = self.grid()
        x = x.float() if grid.divisor is None else x.float() / grid.divisor
        scale, zero_point = self.token_qparams(x)
        rows = x.reshape(-1, self.in_features)
        codes = Codes.empty(*rows.shape, grid)
        write_codes(rows, grid, codes, QParams(scale, zero_point + grid.middle if grid.symmetric else zero_point))
        return codes

    def multiply(self, codes: Codes, into: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        """(p - zero) (w + offset) = (p - middle) w + shift w + (p - zero) offset, with shift = middle - zero."""
        weights = self.weights
        bias = torch.zeros(self.out_features) if self.bias is None else self.bias
        scale, bias = (_gated(values, gate) for values in (weights.scale, bias))
        offset = None if weights.offset is None else weights.offset * scale
        y = weights.matmul(codes.p, MIDDLE, scale)
        return self.passes.finish(y, codes, weights.sums * scale, offset, bias, into)

    def exact_accumulators(self, codes: Codes) -> Tensor:
        return self.exact_products(codes.p, MIDDLE) + codes.shift.long().outer(self.weights.sums.long())


def _gated(values: Tensor | None, gate: Tensor | None) -> Tensor | None:
    return values if values is None or gate is None else values * gate
