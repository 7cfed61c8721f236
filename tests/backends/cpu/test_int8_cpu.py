"""Every kernel: accumulators equal to the reference's and numpy's, bit for bit; the rescale within fp32 rounding."""

import copy
import logging
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.flat_layers import changed, flat, weight_grid
from vdq.backends import Int8CpuBackend, ReferenceBackend
from vdq.backends.cpu import backend as int8_cpu
from vdq.backends.cpu import matmul as int8_matmul
from vdq.backends.cpu import weights as int8_weights
from vdq.backends.cpu.matmul import KERNELS, ChunkedMatmul, OneDnnMatmul, failure, speedup
from vdq.backends.cpu.weights import KeptSets, PrefetchedSets, RequantizedSets
from vdq.backends.integer import signed_weight_bits
from vdq.quant import set_bytes
from vdq.quant.affine import QParams
from vdq.quant.linear import LayerSpec

FORMATS = [(8, 8, False, False), (8, 8, True, True), (8, 6, False, True), (6, 8, False, False), (4, 6, False, True)]
STEPS = (0, 3, 1, 2, 0)  # back and forth between the ranges
EPS = 2.0**-23


def needs(kernel: str, weight_bits: int = 8, act_bits: int = 8) -> None:
    if failure(kernel, weight_bits, act_bits) is not None:
        pytest.skip(f"{kernel} cannot run here: {failure(kernel, weight_bits, act_bits)}")


@pytest.fixture(params=list(KERNELS))
def backend(request) -> Int8CpuBackend:
    needs(request.param, 2, 2)
    return Int8CpuBackend(request.param)


@pytest.fixture
def layer(layer, backend) -> Callable[..., LayerSpec]:
    """Layers with codes of 8 bits, or of the 7 for which oneDNN is exact without VNNI, if no others are asked for."""
    widest = 8 if failure(backend.kernel) is None else 7

    def make(**options) -> LayerSpec:
        spec = layer(**({"act_bits": widest} | options))
        needs(backend.kernel, signed_weight_bits(spec.quant.weight), spec.quant.act.bits)
        return spec

    return make


def term_sizes(spec: LayerSpec, acc_scale: np.ndarray) -> np.ndarray:
    """At least the sum of a product's absolute terms with the corrections: what fp32 rounds relative to."""
    return 3 * 255 * 255 * spec.weight.shape[1] * acc_scale


def check_steps(module, spec, x, oracle) -> None:
    reference = ReferenceBackend().layer(spec)
    for step in STEPS:
        spec.clock.set(step)
        want, acc, y = oracle(spec, x, step), module.accumulators(x), module(x)
        np.testing.assert_array_equal(acc, want.accumulators)
        assert torch.equal(acc.int(), reference.accumulators(x))
        error = np.abs(y.numpy().astype(np.float64) - want.output)
        if spec.quant.act.static and module.sets[0].offset is None:  # one product, one sum
            bias = 0 if spec.bias is None else np.abs(spec.bias.numpy())
            assert np.all(error <= 3 * EPS * (np.abs(want.accumulators) * want.scale + bias))
        assert np.all(error <= EPS * (term_sizes(spec, want.scale) + np.abs(want.output)))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize(("weight_bits", "act_bits", "symmetric_weights", "symmetric_acts"), FORMATS)
def test_accumulators_equal_the_reference(
    weight_bits, act_bits, symmetric_weights, symmetric_acts, smoothing, dynamic, backend, layer, oracle, tokens
):
    spec = layer(
        weight_bits=weight_bits,
        act_bits=act_bits,
        symmetric_weights=symmetric_weights,
        symmetric_acts=symmetric_acts,
        smoothing=smoothing,
        dynamic=dynamic,
    )
    module = backend.layer(spec)
    assert len(module.sets.sets) == (2 if smoothing else 1)
    # Only asymmetric weights of 8 bits need more than a signed byte.
    assert (module.sets[0].offset is None) == (symmetric_weights or weight_bits < 8)
    check_steps(module, spec, tokens(9), oracle)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("in_features", "out_features", "n"), [(1, 1, 1), (7, 5, 2), (300, 33, 700)])
def test_any_size(in_features, out_features, n, dynamic, backend, layer, oracle, tokens):
    """Also without bias, and more tokens than one block."""
    spec = layer(in_features=in_features, out_features=max(out_features, 3), bias=False, dynamic=dynamic)
    check_steps(backend.layer(spec), spec, tokens(n, in_features), oracle)


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_tokens(dynamic, backend, layer):
    spec = layer(dynamic=dynamic)
    assert backend.layer(spec)(torch.empty(0, 4, 48)).shape == (0, 4, 20)


@pytest.mark.parametrize("symmetric", [False, True])
def test_extreme_codes_of_long_sums_are_exact(symmetric, backend, layer, oracle):
    """Sums far above the 2^24 that fp32 counts exactly: every code first or last, zero points at both ends."""
    spec = layer(in_features=4608, symmetric_weights=symmetric, symmetric_acts=symmetric, smoothing=False)
    signs = torch.ones(4, 4608)
    signs[1], signs[2, ::2], signs[3, :2000] = -1, -1, -1
    spec.weight[:4], x = signs, signs * 1e6
    spec = _requantized(spec)
    want = max(np.abs(oracle(spec, x, step).accumulators).max() for step in range(4))
    assert want > (3.7e7 if symmetric else 1.4e8)
    check_steps(backend.layer(spec), spec, x, oracle)


def _requantized(spec: LayerSpec) -> LayerSpec:
    """The layer's parameters made anew from its weight."""
    p = flat(spec.quant)
    weight = weight_grid(spec.weight, None, bits=p.weight_bits, symmetric=p.symmetric_weights)
    return replace(spec, quant=changed(spec.quant, weight=weight))


def test_ties_round_to_even(backend, layer):
    """Inputs of exactly half a step, with an odd zero point: rounding comes before its addition."""
    spec = layer(smoothing=False, symmetric_weights=True)
    zero = QParams(torch.full((4,), 0.25), torch.full((4,), 7.0))
    spec = replace(spec, quant=changed(spec.quant, act=zero))
    halves = (torch.arange(48) - 6 + 0.5) * 0.25
    codes = backend.layer(spec).quantize_input(halves[None])
    assert codes.p.dtype == torch.uint8
    np.testing.assert_array_equal(codes.p[0], np.rint(np.arange(48) - 5.5).clip(-7) + 7)
    reference = ReferenceBackend().layer(spec)
    assert torch.equal(backend.layer(spec).accumulators(halves).int(), reference.accumulators(halves))


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(8, 8), (7, 8), (8, 7)])
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"), [(5, 70, 12), (1, 1, 1), (7, 3, 33), (49, 1025, 18), (100, 2049, 65), (0, 4, 5)]
)
def test_contract_of_a_kernel(tokens, inputs, outputs, weight_bits, act_bits, backend):
    """Oracle: numpy's int64. First codes, last codes and any, in every combination."""
    needs(backend.kernel, weight_bits, act_bits)
    generator, top, end = np.random.default_rng(0), 2**act_bits - 1, 2 ** (weight_bits - 1)
    q = generator.choice([0, top], (tokens, inputs)).astype(np.uint8)
    q[::3], q[1::3] = top, generator.integers(0, top, q[1::3].shape, endpoint=True)
    weight = generator.choice([-end, end - 1], (outputs, inputs)).astype(np.int8)
    weight[::3], weight[1::4] = -end, end - 1
    products = (q.astype(np.int64) - 9) @ weight.astype(np.int64).T
    q, matmul = torch.from_numpy(q), KERNELS[backend.kernel](torch.from_numpy(weight))
    scale, bias, into = torch.full((outputs,), 0.5), torch.arange(outputs).float(), torch.ones(tokens, outputs)
    exact = np.float32(products)
    np.testing.assert_array_equal(matmul(q, 9, scale), exact / 2)
    np.testing.assert_array_equal(matmul(q, 9, scale, x_scale=2.0, bias=bias), exact + bias.numpy())
    assert matmul(q, 9, scale, x_scale=2.0, bias=bias, into=into) is into
    np.testing.assert_allclose(into, np.float64(products) + bias.numpy() + 1, rtol=3 * EPS)


@pytest.mark.parametrize("zero", [0, 7, 130])
def test_codes_of_gelu_out_of_the_product(zero):
    """oneDNN's, against its own fp32 product and torch's GELU: fp32 rounding may move a code by one."""
    needs("oneDNN", 7)
    q = torch.randint(0, 256, (300, 70), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    weight = torch.randint(-64, 64, (120, 70), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    matmul, scale, bias = OneDnnMatmul(weight), torch.linspace(2e-5, 2e-4, 120), torch.linspace(-1, 1, 120)
    y = matmul(q, 9, scale, bias=bias).double()
    codes = matmul.gelu_codes(q, 9, scale, x_scale=1.0, bias=bias, y_scale=0.02, y_zero=zero)
    expected = ((torch.nn.functional.gelu(y, approximate="tanh") / 0.02).round() + zero).clamp(0, 255)
    difference = (codes.double() - expected).abs()
    assert difference.max() <= 1 and (difference > 0).double().mean() < 1e-3 and len(codes.unique()) > 50


def test_shared_tokens(backend, layer):
    spec = layer(dynamic=True, granularity="token_shared")
    spec.rows(nn.Identity(), (torch.empty(2, 1),))  # the denoiser works on two rows, an attention input has 2 * 3
    x = torch.randn(6, 5, 48, generator=torch.Generator().manual_seed(1))
    module, reference = backend.layer(spec), ReferenceBackend().layer(spec)
    assert torch.equal(module.accumulators(x).int(), reference.accumulators(x))
    torch.testing.assert_close(module(x), reference(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_any_strides(dynamic, backend, layer, tokens):
    module, x = backend.layer(layer(dynamic=dynamic)), tokens(9)
    y = module(x)
    assert torch.equal(module(x.T.contiguous().T), y)
    assert torch.equal(module(x[3:4].expand(5, 48)), y[3:4].expand(5, 20))
    assert torch.equal(module(x[4:5].as_strided((1, 48), (0, 1))), y[4:5])


def test_shapes_dtypes_and_casts(backend, layer, tokens):
    spec, x = layer(), tokens(12)
    module = backend.layer(spec)
    y = module(x)
    assert torch.equal(module(x.reshape(3, 4, 48)), y.reshape(3, 4, 20))
    assert torch.equal(module(x.half()), module(x.half().float()).half())
    assert torch.equal(module.half()(x), y)
    with pytest.raises(ValueError, match="blocks.0.fc computes integers on the CPU and cannot move to meta"):
        module.to("meta")


def test_copies_and_pickles(backend, layer, tokens):
    """As processes of `trainer=ddp` need it."""
    spec, x = layer(), tokens(5)
    module = backend.layer(spec)
    spec.clock.set(2)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x)) and twin.fqn == module.fqn
        twin.clock.set(0)
        assert not torch.equal(twin(x), module(x))


def test_every_range_takes_a_byte_a_weight(backend, layer):
    assert backend.layer(layer(weight_bits=4)).weight_bytes == 2 * 48 * 20
    assert backend.layer(layer(smoothing=False)).weight_bytes == 48 * 20


@pytest.mark.parametrize(
    ("choice", "kind"),
    [("keep", KeptSets), ("prefetch", PrefetchedSets), ("requantize", RequantizedSets), ("auto", KeptSets)],
)
def test_weight_sets_are_where_they_were_asked_for(choice, kind, layer):
    assert type(Int8CpuBackend(weight_sets=choice).layer(layer()).sets) is kind


def test_large_sets_are_made_of_a_weight_that_takes_less(layer, monkeypatch):
    monkeypatch.setattr(set_bytes, "SMALL", 0)
    wide, half = layer(), layer()
    half = replace(half, weight=half.weight.to(torch.float8_e4m3fn))  # two sets take twice its bytes
    assert type(Int8CpuBackend().layer(half).sets) is RequantizedSets
    assert type(Int8CpuBackend().layer(wide).sets) is KeptSets


@pytest.mark.parametrize("sets", ["prefetch", "requantize"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_sets_that_are_made_while_sampling_change_no_bit(dynamic, sets, backend, layer, tokens):
    """Back and forth between the ranges, in copies as well."""
    spec, x = layer(dynamic=dynamic), tokens(9)
    kept, module = backend.layer(spec), Int8CpuBackend(backend.kernel, weight_sets=sets).layer(spec)
    for step in STEPS:
        spec.clock.set(step)
        for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(x), kept(x)) and torch.equal(twin.accumulators(x), kept.accumulators(x))
    assert module.weight_bytes == {"prefetch": 2, "requantize": 1}[sets] * 48 * 20
    assert copy.deepcopy(module).sets.arguments[0].data_ptr() == spec.weight.data_ptr()


def test_the_next_set_is_made_in_the_background(backend, layer, tokens, monkeypatch):
    made, make = [], int8_weights.weight_set

    def spy(weight, quant, range_, kernel):
        made.append((range_, threading.current_thread() is threading.main_thread()))
        return make(weight, quant, range_, kernel)

    monkeypatch.setattr(int8_weights, "weight_set", spy)
    spec, threads = layer(), torch.get_num_threads()
    module = Int8CpuBackend(backend.kernel, weight_sets="prefetch").layer(spec)
    for step in (0, 1, 2, 3, 0, 0):  # two steps a range, then the next videos
        spec.clock.set(step)
        module(tokens(9))
    module.sets.next[1].result()
    assert made == [(0, True), (1, False), (0, False), (1, False)]
    assert torch.get_num_threads() == threads


def test_a_set_is_made_once_a_range(backend, layer, tokens, monkeypatch):
    made, make = [], int8_weights.weight_set
    monkeypatch.setattr(int8_weights, "weight_set", lambda *args: made.append(args[2]) or make(*args))
    spec = layer()
    module = Int8CpuBackend(backend.kernel, weight_sets="requantize").layer(spec)
    for step in (0, 1, 2, 3, 0, 0):  # two steps a range, then the next videos
        spec.clock.set(step)
        module(tokens(9))
    assert made == [0, 1, 0]


def test_an_unknown_choice_of_weight_sets_is_refused():
    with pytest.raises(ValueError, match="^backend.weight_sets=disk must be one of auto, keep, prefetch, requantize$"):
        Int8CpuBackend(weight_sets="disk")


def test_what_cannot_run_is_refused_with_the_reason(backend, any_layer):
    with pytest.raises(ValueError, match="^backend int8_cpu does not support layer blocks.0.fc: act_bits=16 must be"):
        backend.layer(any_layer(act_bits=16))


def saturate(monkeypatch, kernel: str) -> None:
    """Makes a kernel as oneDNN's is on a CPU without VNNI, whatever runs the test: pairs of products in 16 bits."""

    class Saturating(ChunkedMatmul):
        def __call__(self, q, zero, scale, *, bias=None, into=0):
            even = F.pad(q.int()[:, None] * self.weight.int(), (0, q.shape[1] % 2))
            pairs = even.unflatten(2, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
            return into + scale * (pairs.sum(-1) - zero * self.sums)

    monkeypatch.setitem(KERNELS, kernel, Saturating)
    monkeypatch.setattr(int8_cpu, "speedup", {"oneDNN": 1.9, "int16": 1.5, "fp32_chunks": 0.7}.get)


@pytest.fixture
def forget():
    """What was found out about kernels, before and after the test."""
    for each in (failure, speedup):
        each.cache_clear()
    yield
    for each in (failure, speedup):
        each.cache_clear()


@pytest.mark.parametrize(
    ("weight_bits", "act_bits", "symmetric", "exact"),
    [(8, 8, False, False), (8, 8, True, False), (7, 8, False, False), (7, 8, True, True)]
    + [(6, 8, False, True), (8, 7, False, True), (4, 6, True, True)],
)
def test_the_kernel_is_chosen_by_the_codes_of_a_layer(
    weight_bits, act_bits, symmetric, exact, any_layer, monkeypatch, forget, caplog
):
    """The widest sums of two products are 2 * 255 * 64 or 2 * 127 * 128, below 2^15, or 2 * 255 * 128, above."""
    saturate(monkeypatch, "oneDNN")
    monkeypatch.setattr(int8_matmul, "gemm_library", uncompiled)
    spec = any_layer(weight_bits=weight_bits, act_bits=act_bits, symmetric_weights=symmetric)
    backend, alone = Int8CpuBackend(), Int8CpuBackend("oneDNN")
    with caplog.at_level(logging.INFO):
        module = backend.layer(spec)
        backend.layer(spec)  # told once
    chosen = "oneDNN" if exact else "fp32_chunks"
    assert type(module.weights.matmul) is KERNELS[chosen] and f"(integer, {chosen}, " in backend.arithmetic
    (record,) = caplog.records
    bits = f"{min(8, weight_bits + (not symmetric))}-bit signed weights with {act_bits}-bit codes"
    ratio, why = (1.9, "") if exact else (0.7, f"oneDNN: wrong sums of {bits} on this CPU")
    assert record.message.startswith(f"int8_cpu: {chosen} multiplies {bits}, about {ratio} times as fast as fp32 here")
    if exact:
        assert record.levelno == logging.INFO and record.message.endswith("here") and alone.supports(spec) is None
    else:
        assert record.levelno == logging.WARNING and f" ({why}; int16: nothing compiles); faster may" in record.message
        assert alone.supports(spec) == f"backend.kernel=oneDNN does not compute it exactly here ({why})"


def uncompiled():
    raise OSError("nothing compiles")


def test_a_model_of_several_bits_names_every_kernel(any_layer, monkeypatch, forget):
    saturate(monkeypatch, "oneDNN")
    backend, passes = Int8CpuBackend(fused=False), int8_cpu.elementwise_passes().name
    assert backend.arithmetic == f"int8_cpu (integer, kernel=auto, {passes} passes, single layers)"
    layers = [backend.layer(any_layer(weight_bits=bits)) for bits in (8, 4)]
    exact = "int16" if failure("int16") is None else "fp32_chunks"
    assert [type(layer.weights.matmul) for layer in layers] == [KERNELS[exact], KERNELS["oneDNN"]]
    assert backend.arithmetic == f"int8_cpu (integer, oneDNN and {exact}, {passes} passes, single layers)"


def test_a_kernel_that_is_missing_is_refused_or_passed_over(any_layer, monkeypatch, forget):
    class Missing(OneDnnMatmul):
        def __init__(self, weight):
            torch.ops.onednn.qlinear_of_another_version(weight)

    monkeypatch.setitem(KERNELS, "oneDNN", Missing)
    why = ".*has no attribute 'qlinear_of_another_version'"
    with pytest.raises(ValueError, match=rf"^backend.kernel=oneDNN cannot run here \(oneDNN: {why}\)$"):
        Int8CpuBackend("oneDNN")
    assert Int8CpuBackend().layer(any_layer(weight_bits=4)).weights.matmul.name in ("int16", "fp32_chunks")
    with pytest.raises(ValueError, match="^backend.kernel=fast must be one of auto, oneDNN, int16, fp32_chunks$"):
        Int8CpuBackend("fast")


def test_speed_beside_fp32(monkeypatch, forget):
    """Oracle: a clock by which a call of the kernel takes half a second, and one of torch.mm a second."""
    times, threads = iter([0.0, 1.0, 0.0, 0.5] * 5), torch.get_num_threads()
    monkeypatch.setattr(int8_matmul.time, "process_time", lambda: next(times))
    assert speedup("fp32_chunks") == 2 and torch.get_num_threads() == threads


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("parts", ["bits", "codes", "groups", "groups bits codes"])
def test_bits_of_steps_groups_and_stored_codes(parts, symmetric, backend, layer, tokens, extended):
    """Accumulators equal to the reference's, which tests/backends/test_reference.py compares with numpy's."""
    spec = layer(act_bits=7, symmetric_weights=symmetric, symmetric_acts=symmetric)
    spec = replace(spec, quant=extended(spec.quant, spec.weight, 6, parts))
    module, reference, x = backend.layer(spec), ReferenceBackend().layer(spec), tokens(12).reshape(4, 3, 48)
    for step in STEPS:
        spec.clock.set(step)
        assert torch.equal(module.accumulators(x).int(), reference.accumulators(x))
        torch.testing.assert_close(module(x), reference(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "parts", ["shift", "rotation correction", "branch", "shift rotation correction bits codes branch groups"]
)
def test_transforms_happen_around_the_layer(parts, dynamic, backend, layer, tokens, extended):
    spec = layer(dynamic=dynamic)
    own = parts.replace("groups", "") if dynamic else parts
    spec = replace(spec, quant=extended(spec.quant, spec.weight, 6, own))
    module, reference, x = backend.layer(spec), ReferenceBackend().layer(spec), tokens(12)
    transformed = []
    module.inner.register_forward_pre_hook(lambda _, args: transformed.append(args[0]))
    for step in STEPS:
        spec.clock.set(step)
        torch.testing.assert_close(module(x), reference(x), rtol=1e-4, atol=1e-3)
        assert torch.equal(
            module.inner.accumulators(transformed[-1]).int(), reference.inner.accumulators(transformed[-1])
        )
    assert module.fqn == spec.fqn and module(x.half()).dtype == torch.float16
