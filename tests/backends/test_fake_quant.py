"""The backend contract, and the only backend that runs everything."""

import pytest
import torch
from torch import nn

from vdq.backends import Backend, FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.methods import DynamicMethod, StaticMethod
from vdq.quant import LayerStats, Stats, apply
from vdq.quant.linear import DynamicLinear, StaticLinear


def state(method, linear: nn.Linear):
    layer = LayerStats.empty(2, linear.in_features)
    layer.min.fill_(-1), layer.max.fill_(2), layer.abs_sum.fill_(8), layer.rows.fill_(4)
    return method.convert(linear, Stats({"": layer}, 2, 1), num_steps=2, quantizable=lambda fqn: True)


def test_static_and_dynamic_layers_are_built():
    linear, backend = nn.Linear(4, 3), FakeQuantBackend()
    assert (backend.name, backend.simulated) == ("fake_quant", True)
    for method, kind in ((StaticMethod(alpha=0.5), StaticLinear), (DynamicMethod(), DynamicLinear)):
        module = apply(linear, state(method, linear), StepClock(2), backend)
        assert type(module) is kind and module.fqn == ""
        with torch.no_grad():
            torch.testing.assert_close(module(torch.rand(5, 4)), linear(torch.rand(5, 4)), rtol=0, atol=2)


def test_an_unsupported_layer_is_an_error_that_says_why():
    class Picky(Backend):
        name, simulated = "picky", False

        def supports(self, layer):
            return f"weight_bits={layer.params.weight_bits} must be 8" if layer.params.weight_bits != 8 else None

        def build(self, layer):
            return nn.Identity()

    linear = nn.Linear(4, 3)
    assert apply(linear, state(StaticMethod(), linear), StepClock(2), Picky()).fqn == ""
    with pytest.raises(ValueError, match="backend picky does not support layer : weight_bits=6 must be 8"):
        apply(linear, state(StaticMethod(weight_bits=6), linear), StepClock(2), Picky())
