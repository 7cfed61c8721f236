"""Integer execution on CPUs: 8-bit products, everything that is static folded before sampling."""

import logging
import subprocess
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from vdq.backends.base import Backend
from vdq.backends.cpu.block import Int8BlockOps
from vdq.backends.cpu.matmul import KERNELS, failure, speedup
from vdq.backends.cpu.native import NativePasses
from vdq.backends.cpu.passes import MIDDLE, Codes, Grid, Source, TorchPasses, write_codes
from vdq.backends.cpu.weights import KeptSets, PrefetchedSets, WeightSet
from vdq.backends.fused_block import FusedBlock, fusible
from vdq.backends.integer import AROUND, BITS, PARTS, IntegerLinear, signed_weight_bits, unsupported
from vdq.errors import UserError
from vdq.quant.affine import QParams
from vdq.quant.linear import LayerSpec

log = logging.getLogger(__name__)
AUTO = "auto"
SLOW = 0.95  # a measured speed below it is less than that of fp32
REMEDY = "faster may be backend.kernel=auto, a C++ compiler (CXX), weights of at most 6 bits, or backend=fake_quant"
WEIGHT_SETS = {"keep": KeptSets, "prefetch": PrefetchedSets}
T = TypeVar("T")
Passes = NativePasses | TorchPasses


class Int8CpuBackend(Backend):
    """Codes of 2..8 bits held in bytes, symmetric or not, static or dynamic.

    `kernel`: "oneDNN", "int16", "fp32_chunks", or "auto", for every layer the first of them that computes exact sums of
    its codes here. `fused`: blocks of STDiT run as a whole where all their projections are quantized, unless tokens
    share a range. `weight_sets`: "keep" has the weights of all time ranges in memory, a byte each, and a switch costs
    nothing; "prefetch" two sets, that of the step and that of the next range, which a thread makes meanwhile from the
    original weight, held by reference, on cores that the model computes on as well. Raises UserError for another value
    and for a kernel that does not work here.
    """

    name = "int8_cpu"
    unsigned = ("weight_sets",)
    simulated = False
    parts = PARTS | AROUND | {"step_bits", "token_groups"}
    most_bits = BITS

    def __init__(self, kernel: str = AUTO, fused: bool = True, weight_sets: str = "keep") -> None:
        if kernel not in (AUTO, *KERNELS):
            raise UserError(f"backend.kernel={kernel} must be one of {', '.join((AUTO, *KERNELS))}")
        if weight_sets not in WEIGHT_SETS:
            raise UserError(f"backend.weight_sets={weight_sets} must be one of {', '.join(WEIGHT_SETS)}")
        self.kernel, self.candidates = kernel, tuple(KERNELS) if kernel == AUTO else (kernel,)
        self.fused, self.passes, self.weight_sets = fused, elementwise_passes(), weight_sets
        name, failures = self._choose(2, 2)
        if name is None:
            raise UserError(f"backend.kernel={kernel} cannot run here ({failures})")
        self.chosen: dict[tuple[int, int], str] = {}  # kernels by the bits of weights and codes, of what was built

    @property
    def arithmetic(self) -> str:
        kernels = " and ".join(name for name in KERNELS if name in self.chosen.values()) or f"kernel={self.kernel}"
        grouping = "fused blocks" if self.fused else "single layers"
        return f"{self.name} (integer, {kernels}, {self.passes.name} passes, {grouping})"

    def supports(self, layer: LayerSpec) -> str | None:
        if (reason := unsupported(layer)) is not None:
            return reason
        name, failures = self._choose(*_code_bits(layer))
        return None if name else f"backend.kernel={self.kernel} does not compute it exactly here ({failures})"

    def build(self, layer: LayerSpec) -> "Int8Linear":
        bits = _code_bits(layer)
        if bits not in self.chosen:
            self.chosen[bits], failures = self._choose(*bits)
            _tell(self.chosen[bits], *bits, failures)
        sets = WEIGHT_SETS[self.weight_sets](layer.weight, layer.params, KERNELS[self.chosen[bits]])
        one_range = layer.params.static and layer.params.act_group is None
        return (StaticInt8Linear if one_range else DynamicInt8Linear)(layer, sets, self.passes)

    def fuse(self, module: nn.Module) -> nn.Module | None:
        if self.fused and fusible(module, Int8Linear):
            return FusedBlock(module, Int8BlockOps(self.passes))
        return None

    def _choose(self, weight_bits: int, act_bits: int) -> tuple[str | None, str]:
        """The first kernel that computes exact sums of such codes, and why those before it do not."""
        failures = []
        for name in self.candidates:
            if (reason := failure(name, weight_bits, act_bits)) is None:
                return name, "; ".join(failures)
            failures.append(f"{name}: {reason}")
        return None, "; ".join(failures)


def _tell(name: str, weight_bits: int, act_bits: int, failures: str) -> None:
    """Which kernel multiplies such codes from now on, how fast it is, and what to do where it is slow."""
    ratio = speedup(name)
    words = f"int8_cpu: {name} multiplies {weight_bits}-bit signed weights with {act_bits}-bit codes"
    words += f", about {ratio:.1f} times as fast as fp32 here" + (f" ({failures})" if failures else "")
    if ratio >= SLOW:
        log.info(words)
    else:
        log.warning("%s; %s", words, REMEDY)


def _code_bits(layer: LayerSpec) -> tuple[int, int]:
    """Bits of the signed weights and of the unsigned codes of a layer, at most."""
    return signed_weight_bits(layer.params), layer.params.act_bits


@cache
def elementwise_passes() -> Passes:
    """Compiled where there is a C++ compiler, else torch's, which the log tells."""
    try:
        return NativePasses()
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("int8_cpu: elementwise passes run in torch, several times slower, as none compiles here: %s", error)
        return TorchPasses()


class Int8Linear(IntegerLinear):
    """Inputs become unsigned bytes p = q - first code, so that zero points are 0..255 whatever the format."""

    def __init__(self, layer: LayerSpec, sets: KeptSets | PrefetchedSets, passes: Passes) -> None:
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
        """Of the clock's step."""
        return self.sets[self.range_]

    @property
    def weight_bytes(self) -> int:
        return self.sets.nbytes


class StaticInt8Linear(Int8Linear):
    """Smoothing and scale are one division by a constant of the step, as in the simulation: the codes are the same.
    The zero point and the bias are added by the kernel.
    """

    def __init__(self, layer: LayerSpec, sets: KeptSets | PrefetchedSets, passes: Passes) -> None:
        super().__init__(layer, sets, passes)
        scale, zero_point = self.params.step_act()
        s = self.params.step_smoothing()
        divisor = scale[:, None] if s is None else scale[:, None] * s
        self.divisor = divisor.expand(-1, self.in_features).contiguous()  # [N, in]
        self.scales: list[float] = scale.tolist()
        first, _ = self.params.step_code_range()
        self.zeros: list[int] = (zero_point - first).int().tolist()

    def grid(self) -> Grid:
        p, step = self.params, self.clock.step
        scale = self.scales[step] if p.smoothing is None else None
        return Grid(
            self.divisor[step],
            self.zeros[step],
            self.act_bits,
            p.symmetric_acts,
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
        p = self.params
        smoothing = None if p.smoothing is None else p.smoothing[self.range_]
        return Grid(smoothing, None, self.act_bits, p.symmetric_acts, self.weights.offset is not None)

    def quantize_input(self, x: Tensor) -> Codes:
        if self.params.act_granularity != "token_shared" and self.params.act_group is None:
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
