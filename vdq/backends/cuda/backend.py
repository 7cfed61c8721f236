"""Integer execution on NVIDIA GPUs: Triton kernels on int8 tensor cores, see vdq.backends.cuda.

Written for, and never run on, a GPU; vdq/backends/cuda says what was checked and how to check the rest.
"""

from importlib.util import find_spec

import torch
from torch import nn

from vdq.backends.base import Backend
from vdq.backends.fused_block import FusedBlock, fusible
from vdq.backends.integer import BITS, PARTS, too_wide
from vdq.backends.set_choice import AUTO, SetChoice
from vdq.errors import UserError
from vdq.quant.linear import LayerSpec

WEIGHT_SETS = ("keep", "stream", "requantize")


def unavailable() -> str | None:
    """Why this backend cannot run here, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.cuda.is_available() and not interpreted():
        return "there is no CUDA device, and TRITON_INTERPRET=1 is not set, with which kernels run slowly on the CPU"
    return None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    from triton import knobs

    return knobs.runtime.interpret


class Int8CudaBackend(Backend):
    """Codes of 2..8 bits held in bytes, symmetric or not, static or dynamic, any number of weight sets.

    Layers may be built on any device and are moved with the model. `weight_sets` says where a layer holds the weights
    of its time ranges, a byte each: "keep": all on the device. "stream": in pinned host memory, and two sets on the
    device, the next being copied while one is used. "requantize": the original weight and one set on the device, which
    is made when its range comes. "auto": "keep" or "requantize", by size (vdq.quant.set_bytes). `fused`: replace whole
    STDiT blocks, which quantizes inside the norms, GELU and residual sums and keeps them in fp32; False computes each
    layer alone. Raises UserError for another value, without Triton, and with neither a CUDA device nor Triton's
    interpreter.
    """

    name = "int8_cuda"
    unsigned = ("weight_sets",)
    simulated = False
    parts = PARTS
    most_bits = BITS

    def __init__(self, weight_sets: str = AUTO, fused: bool = True) -> None:
        self.weight_sets, self.fused = SetChoice(weight_sets, WEIGHT_SETS, BITS), fused
        if (reason := unavailable()) is not None:
            raise UserError(f"backend {self.name} cannot run here: {reason}")

    @property
    def arithmetic(self) -> str:
        return f"{self.name} (integer, Triton{' interpreted on the CPU' if interpreted() else ''})"

    def supports(self, layer: LayerSpec) -> str | None:
        if layer.weight.is_meta:
            return "its weight is on meta, codes need values"
        return too_wide(layer)

    # Triton is imported where it is known to be there.
    def build(self, layer: LayerSpec) -> nn.Module:
        from vdq.backends.cuda.linear import Int8CudaLinear
        from vdq.backends.cuda.weights import KeptSets, RequantizedSets, StreamedSets

        kinds = dict(zip(WEIGHT_SETS, (KeptSets, StreamedSets, RequantizedSets), strict=True))
        return Int8CudaLinear(layer, kinds[self.weight_sets(layer.weight, layer.quant)](layer))

    def fuse(self, module: nn.Module) -> nn.Module | None:
        from vdq.backends.cuda.block import CudaOps
        from vdq.backends.cuda.linear import Int8CudaLinear, one_format, share_codes

        if not self.fused or not fusible(module, Int8CudaLinear):
            return None
        inputs = [list(attention.qkv.children()) for attention in (module.attn, module.attn_temp)]
        if not all(one_format(layers) for layers in inputs):
            return None
        for layers in inputs:
            share_codes(layers)
        return FusedBlock(module, CudaOps())
