"""A weight quantizer of one's own needs what the base class declares, and nothing else."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vdq.backends import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.linear import LayerSpec
from vdq.quant.parts import PerTokenActs, WeightQuantizer
from vdq.quant.weight_codes import unpack_codes


@dataclass(frozen=True, eq=False, kw_only=True)
class QuarterWeights(WeightQuantizer):
    """Multiples of a quarter, kept as codes if there are any."""

    kind, on_host = "quarters_of_a_test", ("codes",)
    codes: Tensor | None = None

    @property
    def num_sets(self):
        return 1

    def codes_of(self, weight, set_, transform):
        if self.codes is not None:
            return unpack_codes(self.codes[set_], weight, bits=self.bits, symmetric=self.symmetric)
        return (4 * transform(weight)).round().clamp(-7, 7)

    def dequantized(self, codes, set_):
        return codes / 4

    def stored(self, codes):
        return QuarterWeights(bits=self.bits, symmetric=True, codes=codes, steps=self.steps)


def test_it_runs_and_its_codes_are_stored_and_loaded():
    weight, x = torch.randn(5, 6), torch.randn(3, 6)
    steps = torch.zeros(2, dtype=torch.long)
    made = LayerQuant(
        weight=QuarterWeights(bits=4, symmetric=True, steps=steps), act=PerTokenActs(bits=16, steps=steps)
    )
    stored = made.with_codes(weight)
    loaded = LayerQuant.restored(stored.description(), stored.tensors())
    expected = x.numpy() @ (np.clip(np.round(4 * weight.numpy()), -7, 7) / 4).T
    for quant, own in ((made, weight), (loaded, torch.zeros_like(weight))):
        layer = FakeQuantBackend().layer(LayerSpec("layer", own, None, quant, StepClock(2), BatchLayout()))
        np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-3)
