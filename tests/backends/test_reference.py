"""The oracle of the integer backends, against numpy's 64-bit integers and against the simulation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.flat_layers import changed, flat
from vdq.backends import FakeQuantBackend, Int8CpuBackend, ReferenceBackend
from vdq.backends.integer import MAX_IN_FEATURES
from vdq.errors import UserError
from vdq.quant.codebook import Codebook
from vdq.quant.linear import LayerSpec

FORMATS = [(8, 8, False, False), (8, 8, True, True), (6, 8, False, False), (4, 6, False, True), (2, 3, True, False)]


def check_steps(module, spec, x, oracle):
    for step in range(4):
        spec.clock.set(step)
        want = oracle(spec, x, step)
        acc = module.accumulators(x)
        assert not acc.is_floating_point()
        np.testing.assert_array_equal(acc, want.accumulators)
        np.testing.assert_allclose(module(x), want.output, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize(("weight_bits", "act_bits", "symmetric_weights", "symmetric_acts"), FORMATS)
def test_accumulators_equal_numpy(
    weight_bits, act_bits, symmetric_weights, symmetric_acts, smoothing, dynamic, layer, oracle, tokens
):
    spec = layer(
        weight_bits=weight_bits,
        act_bits=act_bits,
        symmetric_weights=symmetric_weights,
        symmetric_acts=symmetric_acts,
        smoothing=smoothing,
        dynamic=dynamic,
    )
    check_steps(ReferenceBackend().layer(spec), spec, tokens(9), oracle)


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_bias(dynamic, layer, oracle, tokens):
    spec = layer(bias=False, dynamic=dynamic)
    check_steps(ReferenceBackend().layer(spec), spec, tokens(9), oracle)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_simulation_agrees_within_float_rounding(bits, dynamic, layer, oracle, tokens):
    spec = layer(weight_bits=bits, act_bits=bits, dynamic=dynamic)
    x = tokens(9)
    simulated, integer = FakeQuantBackend().layer(spec), ReferenceBackend().layer(spec)
    for step in range(4):
        spec.clock.set(step)
        # The size of the terms of a sum: rounding is relative to it, not to what is left of them.
        size = np.abs(simulated.act(x).numpy()) @ np.abs(simulated.weights().numpy()).T
        assert np.all(np.abs(simulated(x).numpy() - integer(x).numpy()) <= 1e-6 * (size + 1))


def test_shared_tokens_take_one_range_for_all_rows(layer):
    spec = layer(dynamic=True, granularity="token_shared")
    x = torch.randn(6, 5, 48, generator=torch.Generator().manual_seed(1))
    spec.rows(nn.Identity(), (torch.empty(2, 1),))  # the denoiser works on two rows, an attention input has 2 * 3
    simulated, integer = FakeQuantBackend().layer(spec), ReferenceBackend().layer(spec)
    torch.testing.assert_close(integer(x), simulated(x), rtol=1e-4, atol=1e-4)
    each = ReferenceBackend().layer(layer(dynamic=True))
    assert not torch.allclose(integer(x), each(x), rtol=1e-4, atol=1e-4)


def test_shapes_and_dtypes_follow_the_input(layer, tokens):
    spec = layer()
    module = ReferenceBackend().layer(spec)
    x = tokens(12)
    assert module.fqn == "blocks.0.fc" and not list(module.parameters())
    assert torch.equal(module(x.reshape(3, 4, 48)), module(x).reshape(3, 4, 20))
    assert module(x[:0].reshape(0, 4, 48)).shape == (0, 4, 20)
    half = module(x.half())
    assert half.dtype == torch.float16 and torch.equal(half, module(x.half().float()).half())
    assert torch.equal(module.half()(x), module(x))  # no constant is rounded


def test_what_cannot_run_is_refused_with_the_reason(layer):
    backend = ReferenceBackend()
    for field in ("weight_bits", "act_bits"):
        with pytest.raises(ValueError, match=f"^backend reference .* layer blocks.0.fc: {field}=16 must be at most 8"):
            backend.layer(layer(**{field: 16}))
    assert 255**2 * MAX_IN_FEATURES < 2**31 <= 255**2 * (MAX_IN_FEATURES + 1)
    with pytest.raises(ValueError, match=f"in_features=33026 must be at most {MAX_IN_FEATURES}"):
        backend.layer(layer(in_features=MAX_IN_FEATURES + 1, out_features=3))
    spec = layer()
    elsewhere = LayerSpec("fc", spec.weight.to("meta"), None, spec.quant.to("meta"), spec.clock, spec.rows)
    assert backend.supports(elsewhere) == "its weight is on meta, this backend runs on the CPU"
    with pytest.raises(ValueError, match="layer blocks.0.fc computes integers on the CPU and cannot move to meta"):
        backend.layer(spec).to("meta")


def test_it_says_that_it_is_no_simulation():
    assert (ReferenceBackend().simulated, ReferenceBackend().arithmetic) == (False, "reference (integer)")
    assert FakeQuantBackend().arithmetic == "fake_quant (simulated)"


ALL = "shift rotation correction bits codes branch groups"
PARTS = ["shift", "rotation", "shift rotation correction", "bits", "codes", "branch", "groups", ALL]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("parts", PARTS)
def test_transforms_bits_and_groups_agree_with_the_simulation(parts, bits, layer, tokens, extended):
    """But for codes that fp32 rounds otherwise: simulation and reference divide by the scale in another order."""
    without = layer(weight_bits=bits, act_bits=bits)
    spec, x = replace(without, quant=extended(without.quant, without.weight, 6, parts)), tokens(12).reshape(2, 6, 48)
    simulated, integer = FakeQuantBackend().layer(spec), ReferenceBackend().layer(spec)
    plain, different = ReferenceBackend().layer(without), []
    for step in range(4):
        spec.clock.set(step)
        ours, theirs = integer(x), simulated(x)
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
        different.append((plain(x) - ours).norm() > 1e-3 * ours.norm())
    assert different == [spec.quant.act.bits_of_steps[step] != bits if parts == "bits" else True for step in range(4)]


def test_accumulators_of_groups_equal_numpy(layer, tokens, extended):
    spec = layer(act_bits=6)
    spec = replace(spec, quant=extended(spec.quant, spec.weight, 6, "groups bits codes"))
    module, x, p = ReferenceBackend().layer(spec), tokens(12), flat(spec.quant)
    for step in range(4):
        spec.clock.set(step)
        smoothed = x.numpy() / p.smoothing[p.weight_range[step]].numpy()
        scale, zero = (values[step].numpy()[np.tile([0, 0, 0, 1, 1, 1], 2)][:, None] for values in p.act)
        last = 2 ** int(p.step_bits[step]) - 1
        qx = np.clip(np.rint(smoothed / scale) + zero, 0, last).astype(np.int64)
        range_ = int(p.weight_range[step])
        qw = spec.quant.weight_codes(spec.weight, range_).numpy().astype(np.int64)
        expected = (qx - zero.astype(np.int64)) @ (qw - p.weight.zero_point[range_].numpy().astype(np.int64)).T
        np.testing.assert_array_equal(module.accumulators(x), expected)


def test_codebooks_are_refused(layer):
    spec = layer()
    book = Codebook(torch.arange(3.0), torch.tensor([0.5, 1.5]))
    spec = replace(spec, quant=changed(spec.quant, act=None, codebook=book))
    for backend in (ReferenceBackend(), Int8CpuBackend()):
        with pytest.raises(UserError, match=f"fc: backend={backend.name} does not run the part codebook"):
            backend.layer(spec)
