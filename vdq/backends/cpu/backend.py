"""Integer execution on CPUs: 8-bit products, everything that is static folded before sampling."""

import logging
import subprocess
from functools import cache

from torch import nn

from vdq.backends.base import Backend
from vdq.backends.cpu.block import Int8BlockOps
from vdq.backends.cpu.linear import DynamicInt8Linear, Int8Linear, StaticInt8Linear
from vdq.backends.cpu.matmul import KERNELS, failure, speedup
from vdq.backends.cpu.native import NativePasses, Passes
from vdq.backends.cpu.passes import TorchPasses
from vdq.backends.cpu.weights import KeptSets, PrefetchedSets, RequantizedSets
from vdq.backends.fused_block import FusedBlock, fusible
from vdq.backends.integer import AROUND, BITS, PARTS, one_grid, signed_weight_bits, unsupported
from vdq.backends.set_choice import AUTO, SetChoice
from vdq.errors import UserError
from vdq.quant.linear import LayerSpec

log = logging.getLogger(__name__)
SLOW = 0.95  # a measured speed below it is less than that of fp32
REMEDY = "faster may be backend.kernel=auto, a C++ compiler (CXX), weights of at most 6 bits, or backend=fake_quant"
WEIGHT_SETS = {"keep": KeptSets, "prefetch": PrefetchedSets, "requantize": RequantizedSets}


class Int8CpuBackend(Backend):
    """Codes of 2..8 bits held in bytes, symmetric or not, static or dynamic.

    `kernel`: "oneDNN", "int16", "fp32_chunks", or "auto", for every layer the first of them that computes exact sums of
    its codes here. `fused`: blocks of STDiT run as a whole where all their projections are quantized, unless tokens
    share a range. `weight_sets`: "keep" has the weights of all time ranges in memory, a byte each, and a switch costs
    nothing; "requantize" that of the step, made when the step comes from the original weight, held by reference;
    "prefetch" that of the next range too, which a thread makes meanwhile on cores that the model computes on as well;
    "auto" one of the first two, by size (vdq.quant.set_bytes). Raises UserError for another value and for a kernel that
    does not work here.
    """

    name = "int8_cpu"
    unsigned = ("weight_sets",)
    simulated = False
    parts = PARTS | AROUND | {"step_bits", "token_groups"}
    most_bits = BITS

    def __init__(self, kernel: str = AUTO, fused: bool = True, weight_sets: str = AUTO) -> None:
        if kernel not in (AUTO, *KERNELS):
            raise UserError(f"backend.kernel={kernel} must be one of {', '.join((AUTO, *KERNELS))}")
        self.kernel, self.candidates = kernel, tuple(KERNELS) if kernel == AUTO else (kernel,)
        self.fused, self.passes = fused, elementwise_passes()
        self.weight_sets = SetChoice(weight_sets, WEIGHT_SETS, BITS)
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

    def build(self, layer: LayerSpec) -> Int8Linear:
        bits = _code_bits(layer)
        if bits not in self.chosen:
            self.chosen[bits], failures = self._choose(*bits)
            _tell(self.chosen[bits], *bits, failures)
        kind = WEIGHT_SETS[self.weight_sets(layer.weight, layer.quant)]
        sets = kind(layer.weight, layer.quant, KERNELS[self.chosen[bits]])
        return (StaticInt8Linear if one_grid(layer.quant.act) else DynamicInt8Linear)(layer, sets, self.passes)

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
    return signed_weight_bits(layer.quant.weight), layer.quant.act.bits


@cache
def elementwise_passes() -> Passes:
    """Compiled where there is a C++ compiler, else torch's, which the log tells."""
    try:
        return NativePasses()
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("int8_cpu: elementwise passes run in torch, several times slower, as none compiles here: %s", error)
        return TorchPasses()
