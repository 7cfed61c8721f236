"""Simulated quantization: runs every part and bit-width on any device, in floating point."""

from torch import nn

from vdq.backends.base import Backend
from vdq.errors import UserError
from vdq.quant.linear import LayerSpec, QuantLinear
from vdq.quant.weight_sets import KeptWeights, PackedWeights, RequantizedWeights

AUTO = "auto"
WEIGHT_SETS = {"keep": KeptWeights, "packed": PackedWeights, "requantize": RequantizedWeights}
KEPT_BYTES = 16e6


class FakeQuantBackend(Backend):
    """Quantize, dequantize, multiply in the dtype of the model's weights.

    `weight_sets` says where a layer holds the weight sets of its time ranges; it does not change a bit of the output.
    "keep": dequantized on its device, all of them, the only choice whose traced graph follows the clock. "packed": as
    codes in host memory, and one set on the device. "requantize": only the original weight, by reference, so it must
    not be changed in place, and one set. "auto": "keep" for one set or at most 16 MB of sets in fp32, as every layer of
    the testbed has (kept they cost nothing at run time), "requantize" for larger ones (20 sets of STDiT-XL/2 are 59
    GB). Raises UserError for another value.
    """

    name = "fake_quant"
    unsigned = ("weight_sets",)
    simulated = True

    def __init__(self, weight_sets: str = AUTO) -> None:
        allowed = (AUTO, *WEIGHT_SETS)
        if weight_sets not in allowed:
            raise UserError(f"backend.weight_sets={weight_sets} must be one of {', '.join(allowed)}")
        self.weight_sets = weight_sets

    def build(self, layer: LayerSpec) -> nn.Module:
        choice = _automatic(layer) if self.weight_sets == AUTO else self.weight_sets
        return QuantLinear(layer, WEIGHT_SETS[choice](layer.weight, layer.quant, layer.clock))


def _automatic(layer: LayerSpec) -> str:
    sets = layer.quant.weight.num_sets
    return "keep" if sets == 1 or 4 * sets * layer.weight.numel() <= KEPT_BYTES else "requantize"
