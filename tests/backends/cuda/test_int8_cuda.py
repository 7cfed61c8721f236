"""Triton's kernels against numpy's integers, torch in fp64 and the reference backend.

Where there is a GPU, `pytest tests/backends/cuda/test_int8_cuda.py` is the whole check; elsewhere
test_int8_cuda_anywhere.py runs this file in Triton's interpreter.
"""

import copy
import os
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.flat_layers import changed, flat, weight_grid
from vdq.backends import FakeQuantBackend, Int8CudaBackend, ReferenceBackend
from vdq.backends.cuda.backend import unavailable
from vdq.backends.fused_block import FusedBlock
from vdq.diffusion.clock import BRANCHES, StepClock
from vdq.errors import UserError
from vdq.methods import DynamicMethod, StaticMethod
from vdq.models.stdit import STDiT
from vdq.quant import Observer, apply, quantized_layers, set_bytes
from vdq.quant.affine import QParams
from vdq.quant.linear import LayerSpec

FORMATS = [(8, 8, False, False), (8, 8, True, True), (8, 6, False, True), (6, 8, False, False), (4, 2, False, True)]
STEPS = (0, 3, 1, 2, 0)  # back and forth between the ranges
EPS = 2.0**-23
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if (reason := unavailable()) is not None:
    pytest.skip(f"int8_cuda: {reason}", allow_module_level=True)
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")


def check_steps(module: nn.Module, spec: LayerSpec, x: Tensor, oracle, steps=STEPS) -> None:
    module = module.to(DEVICE)
    for step in steps:
        spec.clock.set(step)
        want, acc, y = oracle(spec, x, step), module.accumulators(x.to(DEVICE)), module(x.to(DEVICE))
        assert not acc.is_floating_point()
        np.testing.assert_array_equal(acc.cpu(), want.accumulators)
        bias = 0 if spec.bias is None else np.abs(spec.bias.cpu().numpy())
        error = np.abs(y.cpu().numpy().astype(np.float64) - want.output)
        assert np.all(error <= 3 * EPS * (np.abs(want.accumulators) * want.scale + bias))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("smoothing", [pytest.param(False, marks=pytest.mark.slow), True])
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
    module = Int8CudaBackend().layer(spec)
    assert len(module.sets.table) == (2 if smoothing else 1)
    # Only asymmetric weights of 8 bits need more than a signed byte.
    assert module.needs_sums == (not symmetric_weights and weight_bits == 8)
    check_steps(module, spec, tokens(9), oracle)


def test_branches_of_guidance_read_their_own_scales(layer, oracle, tokens):
    """The four rows of the layer's tables are the calls of two steps."""
    spec, clock, x = layer(), StepClock(2), tokens(9)
    quant = replace(spec.quant, act=replace(spec.quant.act, per_branch=True))
    module = Int8CudaBackend().layer(replace(spec, quant=quant, clock=clock.calls)).to(DEVICE)
    clock.to(DEVICE)
    for step, branch in ((1, 1), (0, 0), (0, 1), (1, 0)):
        clock.set(step, BRANCHES[branch])
        found = module.accumulators(x.to(DEVICE)).cpu()
        np.testing.assert_array_equal(found, oracle(spec, x, 2 * step + branch).accumulators)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("in_features", "out_features", "n"), [(1, 3, 1), (7, 5, 2), (300, 33, 40), (128, 40, 33)])
def test_any_size(in_features, out_features, n, dynamic, layer, oracle, tokens):
    spec = layer(in_features=in_features, out_features=out_features, bias=False, dynamic=dynamic)
    check_steps(Int8CudaBackend().layer(spec), spec, tokens(n, in_features), oracle)


@pytest.mark.parametrize(("in_features", "out_features"), [(1152, 512), pytest.param(1152, 4608, marks=on_gpu)])
def test_sizes_of_opensora(in_features, out_features, layer, oracle, tokens):
    spec = layer(in_features=in_features, out_features=out_features)
    check_steps(Int8CudaBackend().layer(spec), spec, tokens(17, in_features), oracle, steps=(0, 2))


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_tokens(dynamic, layer):
    spec = layer(dynamic=dynamic)
    assert Int8CudaBackend().layer(spec).to(DEVICE)(torch.empty(0, 4, 48, device=DEVICE)).shape == (0, 4, 20)


@pytest.mark.parametrize("symmetric", [False, True])
def test_extreme_codes_of_long_sums_are_exact(symmetric, layer, oracle):
    """Sums far above the 2^24 that fp32 counts exactly: every code first or last, zero points at both ends."""
    spec = layer(in_features=4608, symmetric_weights=symmetric, symmetric_acts=symmetric, smoothing=False)
    signs = torch.ones(4, 4608)
    signs[1], signs[2, ::2], signs[3, :2000] = -1, -1, -1
    x = signs * 1e6
    spec = with_weight(spec, torch.cat([signs, spec.weight[4:]]))
    want = max(np.abs(oracle(spec, x, step).accumulators).max() for step in range(4))
    assert want > (7e7 if symmetric else 2.9e8)
    check_steps(Int8CudaBackend().layer(spec), spec, x, oracle)


def test_ties_round_to_even_and_nothing_is_too_large(layer):
    """Inputs of exactly half a step, with an odd zero point: rounding comes before its addition."""
    spec = layer(smoothing=False)
    act = QParams(torch.full((4,), 0.25), torch.full((4,), 7.0))
    module = Int8CudaBackend().layer(replace(spec, quant=changed(spec.quant, act=act))).to(DEVICE)
    x = torch.cat([(torch.arange(44) - 6 + 0.5) * 0.25, torch.tensor([3e38, -3e38, 1e9, torch.inf])])
    codes = module.codes(x[None].to(DEVICE)).values[0].cpu()
    np.testing.assert_array_equal(codes[:44], np.rint(np.arange(44) - 5.5).clip(-7) + 7 - 128)
    assert codes[44:].tolist() == [127, -128, 127, 127]


def test_shared_tokens(layer):
    spec = layer(dynamic=True, granularity="token_shared")
    spec.rows(nn.Identity(), (torch.empty(2, 1),))  # the denoiser works on two rows, an attention input has 2 * 3
    x = torch.randn(6, 5, 48, generator=torch.Generator().manual_seed(1))
    module, reference = Int8CudaBackend().layer(spec).to(DEVICE), ReferenceBackend().layer(layer_twin(spec))
    assert torch.equal(module.accumulators(x.to(DEVICE)).cpu(), reference.accumulators(x))
    torch.testing.assert_close(module(x.to(DEVICE)).cpu(), reference(x), rtol=1e-5, atol=1e-4)


def with_weight(spec: LayerSpec, weight: Tensor) -> LayerSpec:
    """The layer with another weight and its parameters."""
    p = flat(spec.quant)
    grid = weight_grid(weight, p.smoothing, bits=p.weight_bits, symmetric=p.symmetric_weights)
    return replace(spec, weight=weight, quant=changed(spec.quant, weight=grid))


def with_sets(spec: LayerSpec, count: int) -> LayerSpec:
    """The layer with so many steps, each with a weight set and activation parameters of its own."""
    each = torch.arange(count)
    s = 0.2 + torch.rand(count, spec.weight.shape[1], generator=torch.Generator().manual_seed(2))
    act = QParams(0.02 * (1 + each), 50.0 * each)
    p = flat(spec.quant)
    grid = weight_grid(spec.weight, s, bits=p.weight_bits, symmetric=p.symmetric_weights)
    quant = changed(spec.quant, act=act, act_range=each, smoothing=s, weight_range=each, weight=grid)
    return replace(spec, quant=quant, clock=StepClock(count))


def layer_twin(spec: LayerSpec) -> LayerSpec:
    """The same layer with a clock that stays on the CPU."""
    clock = StepClock(spec.clock.num_steps)
    return LayerSpec(spec.fqn, spec.weight, spec.bias, spec.quant, clock, spec.rows)


@pytest.mark.parametrize("dynamic", [False, True])
def test_shapes_strides_dtypes_and_casts(dynamic, layer, tokens):
    spec, x = layer(dynamic=dynamic), tokens(12).to(DEVICE)
    module = Int8CudaBackend().layer(spec).to(DEVICE)
    y = module(x)
    assert torch.equal(module(x.reshape(3, 4, 48)), y.reshape(3, 4, 20))
    assert torch.equal(module(x.T.contiguous().T), y)
    for dtype in (torch.float16, torch.bfloat16):
        want = module(x.to(dtype).float()).to(dtype)
        # The interpreter cuts bits off where a GPU rounds to bfloat16.
        rtol = 2.0**-7 if INTERPRETED and dtype == torch.bfloat16 else 0
        torch.testing.assert_close(module(x.to(dtype)), want, rtol=rtol, atol=0)
    assert torch.equal(module.half()(x), y)
    assert not list(module.parameters()) and not module.state_dict()


@pytest.mark.parametrize("weight_sets", ["keep", "stream", "requantize"])
def test_copies_and_pickles(weight_sets, layer, tokens):
    """As processes of `trainer=ddp` need it."""
    spec, x = layer(), tokens(5).to(DEVICE)
    module = Int8CudaBackend(weight_sets).layer(spec).to(DEVICE)
    spec.clock.set(2)
    y = module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), y) and twin.fqn == module.fqn
        twin.clock.set(0)
        assert not torch.equal(twin(x), y)


def test_streamed_sets_are_two_on_the_device_and_the_next_is_loaded_ahead(layer, oracle, tokens):
    spec = with_sets(layer(), 5)
    module = Int8CudaBackend("stream").layer(spec).to(DEVICE)
    assert module.sets.table.shape == (2, 20, 48) and module.weight_bytes == 5 * 20 * 48
    for step in (*range(5), 0, 1, 1, 4, 2):
        check_steps(module, spec, tokens(5), oracle, steps=(step,))
        assert sorted(module.sets.held) == sorted([step, (step + 1) % 5])
    loaded = []
    original = module.sets._load
    module.sets._load = lambda range_, slot: (loaded.append(range_), original(range_, slot))
    for step in (3, 3, 4, 0, 1):
        spec.clock.set(step)
        module(tokens(2).to(DEVICE))
    assert loaded == [4, 0, 1, 2]  # each one step ahead; 3 was there


def kind_of_sets(spec: LayerSpec, choice: str = "auto") -> str:
    return type(Int8CudaBackend(choice).layer(spec).sets).__name__


def test_large_sets_are_made_of_the_weight_unless_it_is_said(layer, monkeypatch):
    spec = with_sets(layer(), 5)
    assert [kind_of_sets(spec, choice) for choice in ("auto", "keep")] == ["KeptSets", "KeptSets"]
    monkeypatch.setattr(set_bytes, "SMALL", 0)
    assert kind_of_sets(spec) == "RequantizedSets" and kind_of_sets(spec, "stream") == "StreamedSets"
    assert kind_of_sets(with_sets(layer(), 4)) == "KeptSets"  # the fp32 weight would take as much
    assert kind_of_sets(layer(smoothing=False)) == "KeptSets"  # one set
    with pytest.raises(ValueError, match="^backend.weight_sets=disk must be one of auto, keep, stream, requantize$"):
        Int8CudaBackend("disk")


@pytest.mark.parametrize("settings", [{}, {"weight_bits": 4}, {"symmetric_weights": True}])
def test_a_set_that_is_made_when_its_range_comes_changes_no_bit(settings, layer, tokens, monkeypatch):
    from vdq.backends.cuda import weights

    spec, x = with_sets(layer(**settings), 5), tokens(5).to(DEVICE)
    kept, module = (Int8CudaBackend(choice).layer(spec).to(DEVICE) for choice in ("keep", "requantize"))
    assert module.sets.table.shape == (1, 20, 48) and module.weight_bytes == 20 * 48
    assert module.sets.source.tensor.data_ptr() == spec.weight.data_ptr() or DEVICE != "cpu"
    for step in (*range(5), 0, 1, 1, 4, 2):
        spec.clock.set(step)
        assert torch.equal(module.accumulators(x), kept.accumulators(x)) and torch.equal(module(x), kept(x))
    made, make = [], weights.signed_weight
    monkeypatch.setattr(weights, "signed_weight", lambda *args: made.append(args[2]) or make(*args))
    for step in (3, 3, 4, 4, 0):
        spec.clock.set(step)
        module(x)
    assert made == [3, 4, 0]  # once a range


def assert_codes(codes: Tensor, exact: Tensor, zero: Tensor | int) -> None:
    """Codes int8 of numbers in steps, fp64, from another order of sums: equal but where that is next to a tie."""
    want = (exact.round() + zero).clamp(-128, 127)
    near = (exact - exact.floor() - 0.5).abs() < 1e-3
    difference = (codes.double().cpu() - want).abs()
    assert difference.max() <= 1 and not difference[~near].any() and near.double().mean() < 0.02


@pytest.mark.parametrize("channels", [48, 1152])
def test_norm_modulate_and_quantize_in_one_pass(channels, layer):
    """For three layers, two of which need the same codes."""
    from vdq.backends.cuda.linear import quantize, share_codes

    spec, generator = layer(in_features=channels), torch.Generator().manual_seed(3)
    other = layer(in_features=channels, smoothing=False)
    layers = [Int8CudaBackend().layer(each).to(DEVICE) for each in (spec, spec, other)]
    share_codes(layers)
    assert [each.source for each in layers] == [0, 0, 2]
    x = 3 * torch.randn(2 * 7, channels, generator=generator) + 1
    table = torch.randn(2, 6, channels, generator=generator)
    shift, scale = table[:, 2], table[:, 4]
    for step in (0, 2):
        for each in layers:
            each.clock.set(step)
        made = quantize(x.to(DEVICE), layers, modulation=(shift.to(DEVICE), scale.to(DEVICE)))
        assert made[0].values.data_ptr() == made[1].values.data_ptr()
        normed = F.layer_norm(x.double(), (channels,), eps=1e-6).view(2, 7, channels)
        normed = (normed * (1 + scale.double()[:, None]) + shift.double()[:, None]).flatten(0, 1)
        for codes, each in ((made[0], spec), (made[2], other)):
            p = flat(each.quant)
            s = 1 if p.smoothing is None else p.smoothing[p.weight_range[step]]
            divisor = p.act.scale[step] * s * torch.ones(channels)
            assert_codes(codes.values, normed / divisor.double(), int(p.act.zero_point[step]) - 128)
            assert torch.equal(codes.sums, codes.values.sum(1, dtype=torch.int32))


@pytest.mark.parametrize("symmetric", [False, True])
def test_dynamic_ranges_of_a_norm(symmetric, layer):
    from vdq.backends.cuda.linear import quantize

    spec = layer(dynamic=True, smoothing=False, symmetric_acts=symmetric)
    module, x = Int8CudaBackend().layer(spec).to(DEVICE), torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(1, 48, device=DEVICE)
    (codes,) = quantize(x.to(DEVICE), [module], modulation=(zeros, zeros))
    normed = F.layer_norm(x.double(), (48,), eps=1e-6)
    lo, hi = normed.amin(1), normed.amax(1)
    scale = torch.maximum(-lo, hi) / 127 if symmetric else (hi - lo) / 255
    zero = 0 * lo if symmetric else (-lo / scale).round() - 128
    torch.testing.assert_close(codes.scale.double().cpu(), scale, rtol=1e-5, atol=0)
    assert torch.equal(codes.zero.double().cpu(), zero)
    assert_codes(codes.values, normed / scale[:, None], zero[:, None])


@pytest.mark.parametrize("dynamic", [False, True])
def test_tokens_in_another_order_with_positions(dynamic, layer, tokens):
    from vdq.backends.cuda.linear import quantize

    spec = layer(dynamic=dynamic)
    module, x = Int8CudaBackend().layer(spec).to(DEVICE), tokens(2 * 3 * 5).to(DEVICE)
    position = torch.randn(3, 48, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    (codes,) = quantize(x, [module], swap=(3, 5), position=position)
    moved = (x.view(2, 3, 5, 48) + position[:, None]).transpose(1, 2)
    assert torch.equal(codes.values, module.codes(moved).values)
    (plain,) = quantize(x, [module], swap=(3, 5))
    assert torch.equal(plain.values, module.codes(x.view(2, 3, 5, 48).transpose(1, 2)).values)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gelu_and_the_codes_of_the_next_layer(symmetric, layer, tokens):
    first, second = layer(out_features=70), layer(in_features=70, symmetric_weights=symmetric, smoothing=not symmetric)
    one, two = (Int8CudaBackend().layer(each).to(DEVICE) for each in (first, second))
    x = tokens(40).to(DEVICE)
    for step in (0, 3):
        first.clock.set(step), second.clock.set(step)
        p, hidden = flat(second.quant), F.gelu(one(x).double().cpu(), approximate="tanh")
        divisor = p.act.scale[step].double() * (1 if symmetric else p.smoothing[p.weight_range[step]].double())
        codes = one(one.codes(x), gelu=True, following=two)
        assert_codes(codes.values, hidden / divisor, int(p.act.zero_point[step]) - 128)
        sums = codes.values.sum(1, dtype=torch.int32)
        assert torch.equal(codes.sums, sums) if not symmetric else not codes.sums.numel()
        torch.testing.assert_close(one(one.codes(x), gelu=True).double().cpu(), hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [5, 256])  # samples that end inside a block, and at its end
def test_residual_and_gate(rows, layer, tokens):
    spec = layer()
    module, generator = Int8CudaBackend().layer(spec).to(DEVICE), torch.Generator().manual_seed(6)
    x = tokens(2 * rows).to(DEVICE)
    residual = torch.randn(2 * rows, 20, generator=generator).to(DEVICE)
    gate = torch.randn(2, 3, 20, generator=generator).to(DEVICE)[:, 1]
    y = module(x).double()
    want = residual + gate.double().repeat_interleave(rows, 0) * y
    codes = module.codes(x)
    torch.testing.assert_close(module(codes, residual=residual, gate=gate).double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module(codes, residual=residual).double(), residual + y, rtol=1e-5, atol=1e-5)


METHODS = {
    "tsq_tsw": partial(StaticMethod, num_time_ranges="per_step", alpha=0.5),
    "tsw": partial(StaticMethod, num_time_ranges="per_step"),
    "symmetric": partial(StaticMethod, alpha=0.5, symmetric_weights=True, symmetric_acts=True),
    "dynamic": DynamicMethod,
    "dynamic_smoothed": partial(DynamicMethod, alpha=0.625),
}


EACH_METHOD = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("tsq_tsw", "dynamic") else pytest.mark.slow) for name in METHODS]
)


def quantizable(fqn: str) -> bool:
    return fqn.startswith("blocks.")


@pytest.fixture(scope="module")
def denoiser() -> STDiT:
    torch.manual_seed(0)
    model = STDiT(
        input_size=(2, 4, 6), hidden_size=32, depth=1, num_heads=2, caption_channels=8, model_max_length=6
    ).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # upstream's zero branches would hide layers
            nn.init.normal_(parameter, std=0.2)
    return model


def inputs(step: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(2, 4, 2, 4, 6, generator=generator), torch.randn(2, 1, 6, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    return tuple(each.to(DEVICE) for each in (x, torch.full((2,), 999 - 250 * step), y, mask))


@pytest.fixture(scope="module")
def stats(denoiser):
    clock = StepClock(4)
    with Observer(denoiser, clock, quantizable) as observer:
        for step in range(4):
            clock.set(step)
            denoiser(*(each.cpu() for each in inputs(step)))
    return observer.stats(num_prompts=2)


def state_of(name, denoiser, stats, **bits):
    return METHODS[name](**bits).convert(denoiser, stats, num_steps=4, quantizable=quantizable)


class Trace(TorchDispatchMode):
    """Names of the operations that run inside it, and the calls of our own."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.zero_points = set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.removesuffix("_")
        self.names.add(name)
        if name == "quantize_tokens":
            self.zero_points.append(len(args[3]))
        return func(*args, **(kwargs or {}))


@EACH_METHOD
def test_a_fused_block_computes_the_same_function(name, denoiser, stats):
    """Next to the simulation, and to the layers one by one, as a code now and then is rounded another way; far from
    that is what quantization does. 4-bit weights and 6-bit activations make the difference plain.
    """
    state, clocks = state_of(name, denoiser, stats, weight_bits=4, act_bits=6), [StepClock(4) for _ in range(3)]
    backends = (FakeQuantBackend(), Int8CudaBackend(fused=False), Int8CudaBackend())
    models = [
        apply(denoiser, state, clock, backend).to(DEVICE) for clock, backend in zip(clocks, backends, strict=True)
    ]
    assert not any(isinstance(module, FusedBlock) for module in models[1].modules())
    assert isinstance(models[2].blocks[0], FusedBlock)
    assert len(quantized_layers(models[2])) == 13
    exact = copy.deepcopy(denoiser).to(DEVICE)
    for step in (0, 3):
        for clock in clocks:
            clock.set(step)
        full = exact(*inputs(step))
        simulated, single, fused = (model(*inputs(step)) for model in models)
        damage = (simulated - full).norm()
        assert damage > 0.02 * full.norm()
        assert (single - simulated).norm() < 0.1 * damage and (fused - simulated).norm() < 0.1 * damage


@pytest.mark.parametrize("name", ["tsq_tsw", "dynamic"])
def test_integer_layers_compute_the_sums_of_the_reference_inside_the_model(name, denoiser, stats):
    state, clock, twin_clock = state_of(name, denoiser, stats), StepClock(4), StepClock(4)
    model = apply(denoiser, state, clock, Int8CudaBackend(fused=False)).to(DEVICE)
    reference, seen = quantized_layers(apply(denoiser, state, twin_clock, ReferenceBackend())), set()

    def compare(module, args):
        want = reference[module.fqn].accumulators(args[0].cpu())
        assert torch.equal(module.accumulators(*args).cpu(), want)
        seen.add(module.fqn)

    for module in quantized_layers(model).values():
        module.register_forward_pre_hook(compare)
    for step in (0, 2):
        clock.set(step), twin_clock.set(step)
        model(*inputs(step))
    assert seen == set(state.layers)


@pytest.mark.parametrize("fused", [False, True])
@EACH_METHOD
def test_static_methods_reduce_no_activation_at_run_time(name, fused, denoiser, stats):
    """No reduction and no synchronization outside the kernels, and quantization is told its zero points; what the
    kernel then does is tested where it is compiled.
    """
    model = apply(denoiser, state_of(name, denoiser, stats), StepClock(4), Int8CudaBackend(fused=fused)).to(DEVICE)
    x, t, y, _ = inputs(0)
    with Trace() as trace:
        model(x, t, y)  # packing masked captions asks for their number
    assert {"quantize_tokens", "int8_linear"} <= trace.names
    assert not trace.names & {"amin", "amax", "aminmax", "min", "max", "mean", "sum", "_local_scalar_dense", "item"}
    assert all(zeros == 0 for zeros in trace.zero_points) if "dynamic" in name else all(trace.zero_points)


def test_a_traced_graph_follows_the_clock(denoiser, stats):
    """The step is data of the graph: one trace serves every time range."""
    clock = StepClock(4)
    model = apply(denoiser, state_of("tsq_tsw", denoiser, stats), clock, Int8CudaBackend("keep")).to(DEVICE)
    layer, x = model.blocks[0].mlp.fc1, torch.randn(2, 8, 32, device=DEVICE)
    graph = make_fx(lambda x: layer(x))(x)
    outputs = []
    for step in (0, 1, 3):
        clock.set(step)
        outputs.append(graph(x))
        assert torch.equal(outputs[-1], layer(x))
    assert not torch.equal(outputs[0], outputs[2])


@on_gpu
@pytest.mark.parametrize("name", ["tsq_tsw", "dynamic"])
def test_a_captured_cuda_graph_follows_the_clock(name, denoiser, stats):
    clock = StepClock(4)
    model = apply(denoiser, state_of(name, denoiser, stats), clock, Int8CudaBackend("keep")).to(DEVICE)
    x, t, y, _ = inputs(0)
    model(x, t, y)  # compiles and measures the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(x, t, y)
    for step in range(4):
        clock.set(step)
        graph.replay()
        torch.testing.assert_close(captured, model(x, t, y), rtol=0, atol=0)
    streamed = apply(denoiser, state_of("tsq_tsw", denoiser, stats), clock, Int8CudaBackend("stream")).to(DEVICE)
    streamed(x, t, y)
    with pytest.raises(ValueError, match="changes its weights and cannot be captured; set weight_sets=keep"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            streamed(x, t, y)


@on_gpu
@pytest.mark.parametrize("weight_sets", ["keep", "stream", "requantize"])
@pytest.mark.parametrize("name", ["tsq_tsw", "dynamic"])
def test_a_compiled_model_computes_the_same(name, weight_sets, denoiser, stats):
    clock = StepClock(4)
    model = apply(denoiser, state_of(name, denoiser, stats), clock, Int8CudaBackend(weight_sets)).to(DEVICE)
    x, t, y, _ = inputs(0)
    compiled = torch.compile(model)
    for step in range(4):
        clock.set(step)
        torch.testing.assert_close(compiled(x, t, y), model(x, t, y), rtol=2e-2, atol=2e-2)


@on_gpu
def test_half_precision_on_the_gpu(denoiser, stats):
    clock = StepClock(4)
    model = apply(denoiser, state_of("tsq_tsw", denoiser, stats), clock, Int8CudaBackend()).to(DEVICE)
    full = model(*inputs(0))
    half = model.half()(*(each.half() if each.is_floating_point() else each for each in inputs(0)))
    assert (half - full).norm() < 0.02 * full.norm()


def test_what_cannot_run_is_refused_with_the_reason(layer):
    with pytest.raises(ValueError, match="^backend int8_cuda does not support layer blocks.0.fc: act_bits=16 must be"):
        Int8CudaBackend().layer(layer(act_bits=16))
    spec = layer()
    elsewhere = LayerSpec("fc", spec.weight.to("meta"), None, spec.quant.to("meta"), spec.clock, spec.rows)
    assert Int8CudaBackend().supports(elsewhere) == "its weight is on meta, codes need values"


@on_gpu
def test_numbers_on_the_cpu_are_refused(layer):
    with pytest.raises(ValueError, match="layer blocks.0.fc has an input on cpu, int8_cuda computes on cuda only"):
        Int8CudaBackend().layer(layer())(torch.zeros(1, 48))


def test_it_says_what_ran():
    name = "int8_cuda (integer, Triton interpreted on the CPU)" if INTERPRETED else "int8_cuda (integer, Triton)"
    assert Int8CudaBackend().arithmetic == name and not Int8CudaBackend().simulated


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ("shift", "shift"),
        ("rotation", "rotation"),
        ("correction", "correction"),
        ("bits", "step_bits"),
        ("groups", "token_groups"),
        ("branch", "low_rank"),
    ],
)
def test_what_its_kernels_do_not_know_is_refused(parts, kind, layer, extended):
    spec = layer()
    spec = replace(spec, quant=extended(spec.quant, spec.weight, 6, parts))
    with pytest.raises(UserError, match=f"^layer blocks.0.fc: backend=int8_cuda does not run the part {kind}; it runs"):
        Int8CudaBackend().layer(spec)


def test_stored_codes(layer, oracle, tokens, extended):
    """The oracle rounds, so the codes are those of rounding, of a weight that is no longer there."""
    spec = layer()
    coded = replace(spec, weight=torch.zeros_like(spec.weight), quant=spec.quant.with_codes(spec.weight))
    module, x = Int8CudaBackend().layer(coded).to(DEVICE), tokens(9).to(DEVICE)
    for step in STEPS:
        spec.clock.set(step)
        np.testing.assert_array_equal(module.accumulators(x).cpu(), oracle(spec, x.cpu(), step).accumulators)
