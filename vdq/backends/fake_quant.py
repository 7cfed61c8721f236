"""Simulated quantization: runs every recipe and bit-width on any device, in floating point."""

from torch import nn

from vdq.backends.base import Backend
from vdq.quant.linear import DynamicLinear, LayerSpec, StaticLinear


class FakeQuantBackend(Backend):
    """Quantize, dequantize, multiply in the dtype of the model's weights."""

    name = "fake_quant"
    simulated = True

    def supports(self, layer: LayerSpec) -> str | None:
        return None

    def build(self, layer: LayerSpec) -> nn.Module:
        return StaticLinear(layer) if layer.params.static else DynamicLinear(layer)
