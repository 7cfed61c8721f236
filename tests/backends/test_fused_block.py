"""A fused block computes what its layers compute one by one."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from vdq.backends import Backend, Int8CpuBackend, ReferenceBackend
from vdq.backends.cpu.linear import Int8Linear
from vdq.backends.cpu.matmul import KERNELS, failure
from vdq.backends.cpu.passes import TorchPasses
from vdq.backends.fused_block import FusedBlock, block_layers
from vdq.backends.integer import integer_weight_bytes
from vdq.diffusion.clock import StepClock
from vdq.methods import DynamicMethod, StaticMethod
from vdq.models.stdit import FusedLinear, STDiT
from vdq.quant import CallCounter, Observer, QuantState, apply, quantized_layers

STEPS = 4
METHODS = {
    "cw_tw": StaticMethod(),
    "tsw": StaticMethod(act_time_ranges="per_step"),
    "asq": StaticMethod(alpha=0.5),
    "tsq_tsw": StaticMethod(alpha=0.5, num_time_ranges="per_step"),
    "symmetric": StaticMethod(symmetric_weights=True, symmetric_acts=True),
    "w8a8 without a correction": StaticMethod(symmetric_weights=True),
    "w4a8": StaticMethod(weight_bits=4),
    "w6a6": StaticMethod(weight_bits=6, act_bits=6, alpha=0.5),
    "dynamic": DynamicMethod(),
    "dynamic w4a6": DynamicMethod(weight_bits=4, act_bits=6, alpha=0.5),
}
SIZES = {
    "small": dict(input_size=(2, 4, 6), hidden_size=32, num_heads=4, model_max_length=5, mlp_ratio=2.0),
    "odd": dict(input_size=(3, 2, 10), hidden_size=36, num_heads=3, model_max_length=7, mlp_ratio=1.5),
    "one token": dict(input_size=(1, 2, 2), hidden_size=8, num_heads=1, model_max_length=1, mlp_ratio=1.0),
}
BACKENDS = {
    "compiled": lambda: Int8CpuBackend(),
    "torch": lambda: with_torch_passes(Int8CpuBackend()),
    "int16": lambda: Int8CpuBackend("int16"),
    "fp32_chunks": lambda: Int8CpuBackend("fp32_chunks"),
}


def with_torch_passes(backend: Int8CpuBackend) -> Int8CpuBackend:
    backend.passes = TorchPasses()
    return backend


class Case:
    """A network of two blocks, its inputs at every step and the statistics of its layers."""

    def __init__(self, size: str) -> None:
        torch.manual_seed(0)
        options = SIZES[size]
        self.net = STDiT(**options, depth=2, caption_channels=8).eval().requires_grad_(False)
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.2)
        self.length = options["model_max_length"]
        self.y = torch.randn(2, 1, self.length, 8)
        self.clock = StepClock(STEPS)
        with Observer(self.net, self.clock, quantizable) as observer:
            for step in range(STEPS):
                self.clock.set(step)
                self.net(*self.inputs(step))
        self.stats = observer.stats(num_prompts=2)

    def inputs(self, step: int, padded: bool = True) -> tuple:
        x = torch.randn(2, 4, *self.net.input_size, generator=torch.Generator().manual_seed(step)) * (step + 1)
        mask = torch.ones(2, self.length)
        mask[0, 1 + self.length // 2 :] = 0
        return x, torch.tensor([999 - 200 * step] * 2), self.y, mask if padded else None

    def quantized(self, method, backend: Backend, clock: StepClock | None = None) -> nn.Module:
        state = method.convert(self.net, self.stats, num_steps=STEPS, quantizable=quantizable)
        return apply(self.net, state, clock or self.clock, backend)


def quantizable(fqn: str) -> bool:
    return fqn.startswith("blocks.")


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {size: Case(size) for size in SIZES}


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("backend", "size"),
    [*(("compiled", size) for size in SIZES), ("torch", "odd"), ("int16", "odd"), ("fp32_chunks", "odd")],
)
def test_equals_its_layers_one_by_one_and_the_reference(backend, size, name, cases):
    """The first block adds temporal positions, the second none. Equal within float rounding, but where that moves a
    code to its neighbour: one of n inputs of a layer then has sqrt(12 / n) of the error that quantization makes.
    """
    kernel = backend if backend in KERNELS else "auto"
    if kernel in KERNELS and failure(kernel) is not None:
        pytest.skip(f"{kernel} cannot run here: {failure(kernel)}")
    case, method = cases[size], METHODS[name]
    fused = case.quantized(method, BACKENDS[backend]())
    others = [case.quantized(method, other) for other in (Int8CpuBackend(kernel, fused=False), ReferenceBackend())]
    assert all(type(block) is FusedBlock for block in fused.blocks)
    assert not any(isinstance(module, FusedBlock) for other in others for module in other.modules())
    errors = []
    for step, padded in [(0, True), (3, False), (1, True)]:
        case.clock.set(step)
        inputs = case.inputs(step, padded)
        exact, found = case.net(*inputs), fused(*inputs)
        for other in others:
            expected = other(*inputs)
            errors.append(error(found, expected))
            assert errors[-1] < 0.3 * error(expected, exact) + 1e-6
    assert min(errors) < 1e-5


def test_videos_at_different_timesteps_have_their_own_gates(cases):
    case = cases["small"]
    x, _, y, mask = case.inputs(0)
    inputs = (x, torch.tensor([999, 3]), y, mask)
    fused, single = (case.quantized(METHODS["asq"], Int8CpuBackend(fused=flag)) for flag in (True, False))
    assert error(fused(*inputs), single(*inputs)) < 1e-3


def test_layers_are_found_and_their_calls_counted(cases):
    case = cases["small"]
    fused, single = (case.quantized(METHODS["tsq_tsw"], Int8CpuBackend(fused=flag)) for flag in (True, False))
    assert list(quantized_layers(fused)) == list(quantized_layers(single)) and len(quantized_layers(fused)) == 2 * 13
    assert integer_weight_bytes(fused) == integer_weight_bytes(single) > 0
    counts = []
    for model in (fused, single):
        with CallCounter(model) as counter:
            model(*case.inputs(0))
            model(*case.inputs(0))
        counts.append(counter.calls)
    assert counts[0] == counts[1] and set(counts[0].values()) == {2} and len(counts[0]) == 26
    x = torch.randn(3, 32)
    ours, theirs = (quantized_layers(model)["blocks.1.mlp.fc1"] for model in (fused, single))
    assert torch.equal(ours(x), theirs(x)) and torch.equal(ours.accumulators(x), theirs.accumulators(x))


def test_equal_codes_are_made_once(cases):
    """q, k and v of one input share codes unless each has its own smoothing."""
    for name, shared in [("cw_tw", True), ("tsw", True), ("dynamic", True), ("asq", False)]:
        block = cases["small"].quantized(METHODS[name], Int8CpuBackend()).blocks[0]
        codes = block.ops.quantize(torch.randn(4, 32), [*block.attn.qkv.children()])
        assert len({one.p.data_ptr() for one in codes}) == (1 if shared else 3)


def test_the_input_stays_as_it_was(cases):
    case = cases["small"]
    block = case.quantized(METHODS["cw_tw"], Int8CpuBackend()).blocks[0]
    seen = []
    block.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[0].clone())))
    model = case.quantized(METHODS["cw_tw"], Int8CpuBackend())
    model.blocks[0] = block
    model(*case.inputs(0))
    assert torch.equal(*seen[0])


def test_half_precision_models(cases):
    case = cases["small"]
    fused = case.quantized(METHODS["asq"], Int8CpuBackend())
    expected = fused(*case.inputs(0))
    found = fused.to(torch.bfloat16)(*case.inputs(0))
    assert 0 < error(found, expected) < 0.1


def test_copies_and_pickles(cases):
    case = cases["small"]
    clock = StepClock(STEPS)
    model = case.quantized(METHODS["tsq_tsw"], Int8CpuBackend(), clock)
    clock.set(2)
    expected = model(*case.inputs(2))
    both = (model, clock)
    for twin, time in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert torch.equal(twin(*case.inputs(2)), expected)
        time.set(0)
        assert not torch.equal(twin(*case.inputs(2)), expected) and torch.equal(model(*case.inputs(2)), expected)


@pytest.mark.parametrize("name", ["blocks.0.attn.k", "blocks.0.mlp.fc2", "blocks.0.cross_attn.kv_linear"])
def test_a_block_with_a_layer_in_full_precision_is_not_fused(name, cases):
    case = cases["small"]
    keeps = lambda fqn: quantizable(fqn) and fqn != name  # noqa: E731
    state = METHODS["cw_tw"].convert(case.net, case.stats, num_steps=STEPS, quantizable=keeps)
    model = apply(case.net, state, case.clock, Int8CpuBackend())
    assert [type(block) is FusedBlock for block in model.blocks] == [False, True]
    assert sum(isinstance(layer, Int8Linear) for layer in block_layers(model.blocks[0])) == 12
    assert torch.isfinite(model(*case.inputs(0))).all()
    nothing = METHODS["cw_tw"].convert(
        case.net, case.stats, num_steps=STEPS, quantizable=lambda fqn: fqn.startswith("blocks.1.mlp")
    )
    model = apply(case.net, nothing, case.clock, Int8CpuBackend())
    assert not any(isinstance(block, FusedBlock) for block in model.blocks)
    assert isinstance(model.blocks[0].attn.qkv, FusedLinear)


@pytest.mark.parametrize("narrow", ["fc1", "fc2"])
def test_a_block_may_have_several_kernels(narrow, cases):
    """Weights of 4 bits among those of 8 have another kernel where the CPU lacks VNNI."""
    case = cases["odd"]
    wide, four = (
        METHODS[name].convert(case.net, case.stats, num_steps=STEPS, quantizable=quantizable).layers
        for name in ("cw_tw", "w4a8")
    )
    state = QuantState({fqn: (four if fqn.endswith(narrow) else wide)[fqn] for fqn in wide}, STEPS)
    case.clock.set(0)
    fused, single = (apply(case.net, state, case.clock, Int8CpuBackend(fused=flag)) for flag in (True, False))
    assert type(fused.blocks[0]) is FusedBlock
    assert error(fused(*case.inputs(0)), single(*case.inputs(0))) < 1e-3


def test_tokens_that_share_a_range_are_not_fused(cases):
    model = cases["small"].quantized(DynamicMethod(token_granularity="token_shared"), Int8CpuBackend())
    assert not any(isinstance(block, FusedBlock) for block in model.blocks)
    np.testing.assert_array_equal(model(*cases["small"].inputs(0)).isfinite(), True)
