"""Simulated quantization: runs every part and bit-width on any device, in floating point."""

from torch import nn

from vdq.backends.base import Backend
from vdq.backends.set_choice import AUTO, SetChoice
from vdq.quant.linear import LayerSpec, QuantLinear
from vdq.quant.weight_sets import KeptWeights, PackedWeights, RequantizedWeights

WEIGHT_SETS = {"keep": KeptWeights, "packed": PackedWeights, "requantize": RequantizedWeights}
FLOAT_BITS = 32


class FakeQuantBackend(Backend):
    """Quantize, dequantize, multiply in the dtype of the model's weights.

    `weight_sets` says where a layer holds the weight sets of its time ranges; it does not change a bit of the output.
    "keep": dequantized on its device, all of them, the only choice whose traced graph follows the clock. "packed": as
    codes in host memory, and one set on the device. "requantize": only the original weight, by reference, so it must
    not be changed in place, and one set. "auto": "keep" for one set or at most 16 MB of sets in fp32, as every layer of
    the testbed has (kept they cost nothing at run time), "requantize" for larger ones (20 sets of STDiT-XL/2 are 59
    GB); see vdq.quant.set_bytes. Raises UserError for another value.
    """

    name = "fake_quant"
    unsigned = ("weight_sets",)
    simulated = True

    def __init__(self, weight_sets: str = AUTO) -> None:
        self.weight_sets = SetChoice(weight_sets, WEIGHT_SETS, FLOAT_BITS)

    def build(self, layer: LayerSpec) -> nn.Module:
        sets = WEIGHT_SETS[self.weight_sets(layer.weight, layer.quant)]
        return QuantLinear(layer, sets(layer.weight, layer.quant, layer.clock))
