"""The backend contract, and the only backend that runs everything."""

import pytest
import torch
from torch import nn

from vdq.backends import Backend, FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.methods import DynamicMethod, StaticMethod
from vdq.quant import LayerStats, Stats, apply
from vdq.quant.weight_sets import KeptWeights, PackedWeights, RequantizedWeights


def state(method, linear: nn.Linear):
    layer = LayerStats.empty(2, linear.in_features)
    layer.min.fill_(-1), layer.max.fill_(2), layer.abs_sum.fill_(8), layer.rows.fill_(4)
    return method.convert(linear, Stats({"": layer}, 2, 1), num_steps=2, quantizable=lambda fqn: True)


def test_static_and_dynamic_layers_are_built():
    linear, backend = nn.Linear(4, 3), FakeQuantBackend()
    assert (backend.name, backend.simulated) == ("fake_quant", True)
    for method in (StaticMethod(alpha=0.5), DynamicMethod()):
        module = apply(linear, state(method, linear), StepClock(2), backend)
        assert module.fqn == ""
        with torch.no_grad():
            torch.testing.assert_close(module(torch.rand(5, 4)), linear(torch.rand(5, 4)), rtol=0, atol=2)


@pytest.mark.parametrize(
    ("choice", "in_features", "alpha", "kind"),
    [
        ("keep", 64, 0.5, KeptWeights),
        ("packed", 64, 0.5, PackedWeights),
        ("requantize", 64, 0.5, RequantizedWeights),
        ("auto", 1000, 0.5, KeptWeights),  # two fp32 sets of 2000 rows: 16 MB
        ("auto", 1001, 0.5, RequantizedWeights),
        ("auto", 2002, None, KeptWeights),  # one set
    ],
)
def test_weight_sets_are_where_they_were_asked_for(choice, in_features, alpha, kind):
    linear = nn.Linear(in_features, 2000)
    method = StaticMethod(num_time_ranges="per_step", alpha=alpha)
    module = apply(linear, state(method, linear), StepClock(2), FakeQuantBackend(choice))
    assert type(module.weights) is kind


def test_an_unknown_choice_of_weight_sets_is_refused():
    with pytest.raises(ValueError, match="^backend.weight_sets=disk must be one of auto, keep, packed, requantize$"):
        FakeQuantBackend("disk")


def test_an_unsupported_layer_is_an_error_that_says_why():
    class Picky(Backend):
        name, simulated = "picky", False

        def supports(self, layer):
            return None if (bits := layer.quant.weight.bits) == 8 else f"weight_bits={bits} must be 8"

        def build(self, layer):
            return nn.Identity()

    linear = nn.Linear(4, 3)
    assert apply(linear, state(StaticMethod(), linear), StepClock(2), Picky()).fqn == ""
    with pytest.raises(ValueError, match="backend picky does not support layer : weight_bits=6 must be 8"):
        apply(linear, state(StaticMethod(weight_bits=6), linear), StepClock(2), Picky())
