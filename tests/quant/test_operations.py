"""Operations against torch's own counter of products, against additions that ran, and against sums by hand."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vdq.backends import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.methods import DVDQuantMethod, StaticMethod
from vdq.models.stdit_family import example_inputs
from vdq.quant import LayerStats, QuantState, Stats, apply, projections
from vdq.quant.layers import linear_modules
from vdq.quant.operations import call_rows, layer_operations, operations, total
from vdq.quant.rotation import _butterflies

STEPS = 4


def converted(net, method) -> QuantState:
    widths = {p.input_fqn: p.weight.shape[1] for p in projections(net)}
    ones = {fqn: torch.ones(STEPS, width) for fqn, width in widths.items()}
    rows = torch.ones(STEPS, dtype=torch.long)
    layers = {fqn: LayerStats(-one, one, one.double(), rows) for fqn, one in ones.items()}
    return method.convert(net, Stats(layers, STEPS, 1), num_steps=STEPS, quantizable=lambda fqn: "blocks" in fqn)


def multiply_adds(net) -> dict[str, float]:
    """By module, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*example_inputs(net))
    prefix = f"{type(net).__name__}."
    return {name.removeprefix(prefix): sum(ops.values()) / 2 for name, ops in counter.get_flop_counts().items()}


def test_multiply_adds_are_those_that_torch_counts(small_stdit):
    net = small_stdit()
    counted = multiply_adds(net)
    plain = operations(net, QuantState({}, STEPS), call_rows(net, example_inputs))
    for fqn, _ in linear_modules(net):
        own = [plain[p.fqn] for p in projections(net) if p.input_fqn == fqn]
        assert sum(each.float_macs for each in own) == counted[fqn] > 0
        assert all(each.integer_macs == each.rotation_adds == 0 for each in own)
    assert total(plain).bit_operations == 256 * total(plain).float_macs

    found = operations(net, converted(net, StaticMethod(weight_bits=6, act_bits=5)), call_rows(net, example_inputs))
    integers, floats = total(found).integer_macs, total(found).float_macs
    assert integers + floats == total(plain).float_macs
    assert integers == sum(counted[fqn] for fqn, _ in linear_modules(net) if fqn.startswith("blocks."))
    assert total(found).bit_operations == 30 * integers + 256 * floats


def test_branches_are_what_a_quantized_model_multiplies_more(small_stdit, extended_state):
    net, clock = small_stdit(), StepClock(STEPS)
    state = converted(net, StaticMethod(weight_bits=4, act_bits=4))
    branched = extended_state(net, state, "branch rotation bits")
    models = (apply(net, each, clock, FakeQuantBackend()) for each in (state, branched))
    plain, more = (multiply_adds(model)["Global"] for model in models)
    counts = [total(operations(net, each, call_rows(net, example_inputs))) for each in (state, branched)]
    assert counts[1].float_macs - counts[0].float_macs == more - plain > 0
    assert counts[1].integer_macs == counts[0].integer_macs


class Additions(TorchDispatchMode):
    """Counts the numbers that additions and subtractions make."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::add", "aten::sub"):
            self.count += out.numel()
        return out


@pytest.mark.parametrize("block", [2, 16, 128])
def test_rotations_take_the_additions_that_run(block):
    weight = torch.randn(6, 384, generator=torch.Generator().manual_seed(0))
    method = DVDQuantMethod(rotation_block=block)
    with Additions() as additions:
        _butterflies(torch.zeros(5, 384), block)
    found = layer_operations(method.layer(weight, None, STEPS), (6, 384), rows=5)
    assert found.rotation_adds == additions.count == 5 * 384 * math.log2(block)
    assert found.bit_operations is None  # the bits are chosen while sampling
    given = layer_operations(method.layer(weight, None, STEPS), (6, 384), rows=5, act_bits=6.5)
    assert given.bit_operations == 5 * 6 * 384 * 4 * 6.5 + 16 * additions.count


def test_bits_of_steps_count_by_their_mean(small_stdit, extended_state):
    net = small_stdit()
    state = extended_state(net, converted(net, StaticMethod(weight_bits=8, act_bits=8)), "bits")  # 8, 6, 7, 8
    counts = total(operations(net, state, call_rows(net, example_inputs)))
    assert counts.bit_operations == pytest.approx(8 * 7.25 * counts.integer_macs + 256 * counts.float_macs)
