"""Layers and steps that stay in full precision."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vdq.backends import Backend, FakeQuantBackend, Int8CpuBackend, ReferenceBackend
from vdq.diffusion.clock import StepClock
from vdq.errors import UserError
from vdq.methods import DVDQuantMethod, DynamicMethod, Method, QvdMethod, StaticMethod
from vdq.models.stdit import FusedLinear
from vdq.quant import CallCounter, Observer, QuantState, Stats, apply, model_size, quantized_layers
from vdq.quant.keep import Keep
from vdq.quant.operations import layer_operations

STEPS = 4
LAYERS = ["attn.q", "attn.k", "attn.v", "fc", "head"]
METHODS: dict[str, Callable[[], Method]] = {
    "tsq_tsw": lambda: StaticMethod(weight_bits=6, act_bits=8, num_time_ranges="per_step", alpha=0.5),
    "asq": lambda: StaticMethod(weight_bits=8, act_bits=8, alpha=0.5),
    "dynamic": lambda: DynamicMethod(weight_bits=4, act_bits=8),
    "qvd": lambda: QvdMethod(weight_bits=8, act_bits=8, temporal_bits=None),
}
BACKENDS: dict[str, Callable[[], Backend]] = {
    "fake_quant": FakeQuantBackend,
    "requantize": lambda: FakeQuantBackend(weight_sets="requantize"),
    "reference": ReferenceBackend,
    "int8_cpu": Int8CpuBackend,
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv = FusedLinear(16, 48, parts=("q", "k", "v"))
        self.fc = nn.Linear(16, 24)
        self.head = nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attn.qkv(x)
        return self.head(self.fc(q * k + v).relu())


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def data(step: int) -> torch.Tensor:
    return torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(step)) * (step + 1)


@pytest.fixture(scope="module")
def stats(net: Net) -> Stats:
    clock = StepClock(STEPS)
    with Observer(net, clock, lambda fqn: True) as observer:
        for step in range(STEPS):
            clock.set(step)
            net(data(step))
    return observer.stats(num_prompts=3)


def convert(net: Net, stats: Stats, method: Method, **keep: tuple) -> QuantState:
    return method.convert(net, stats, num_steps=STEPS, quantizable=lambda fqn: True, keep=Keep(**keep))


def outputs(net: nn.Module, state: QuantState, backend: Backend) -> list[torch.Tensor]:
    """Of every step, in their order."""
    clock = StepClock(STEPS)
    quantized, found = apply(net, state, clock, backend), []
    for step in range(STEPS):
        clock.set(step)
        found.append(quantized(data(step)))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_kept_steps_are_full_precision_to_the_bit_and_the_others_as_before(net, stats, method, backend):
    plain = outputs(net, convert(net, stats, METHODS[method]()), BACKENDS[backend]())
    kept = outputs(net, convert(net, stats, METHODS[method](), steps=(0, -1)), BACKENDS[backend]())
    for step in range(STEPS):
        exact = net(data(step))
        assert torch.equal(kept[step], exact if step in (0, STEPS - 1) else plain[step])
        assert not torch.equal(plain[step], exact)


def test_a_layer_at_a_kept_step_is_f_linear_of_the_original_weight(net, stats):
    clock = StepClock(STEPS)
    quantized = apply(net, convert(net, stats, METHODS["asq"](), steps=(2,)), clock, FakeQuantBackend())
    x = data(7)
    clock.set(2)
    assert torch.equal(quantized.fc(x), F.linear(x, net.fc.weight, net.fc.bias))
    assert torch.equal(torch.cat(quantized.attn.qkv(x), -1), F.linear(x, net.attn.qkv.weight, net.attn.qkv.bias))
    clock.set(1)
    assert not torch.equal(quantized.fc(x), F.linear(x, net.fc.weight, net.fc.bias))


def test_kept_weights_take_no_memory_of_their_own_and_a_cast_leaves_the_original_alone(net, stats):
    before = copy.deepcopy(net.state_dict())
    quantized = apply(net, convert(net, stats, METHODS["asq"](), steps=(2,)), StepClock(STEPS), FakeQuantBackend())
    assert quantized.fc.plain.weight.data_ptr() == net.fc.weight.data_ptr()
    assert type(quantized.attn.qkv.plain) is FusedLinear
    quantized.half()
    assert quantized.fc.plain.weight.dtype == torch.float16
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_no_quantized_layer_is_called_at_a_kept_step(net, stats):
    clock = StepClock(STEPS)
    quantized = apply(net, convert(net, stats, METHODS["asq"](), steps=(0, 1)), clock, FakeQuantBackend())
    with CallCounter(quantized) as counter:
        for step in range(STEPS):
            clock.set(step)
            quantized(data(step))
    assert counter.calls == dict.fromkeys(LAYERS, STEPS - 2)


def test_what_is_kept_of_a_result_is_of_the_steps_function(net, stats):
    clock = StepClock(STEPS)
    quantized = apply(net, convert(net, stats, METHODS["asq"](), steps=(0,)), clock, FakeQuantBackend())
    variants = []
    for step in range(STEPS):
        clock.set(step)
        variants.append(quantized.fc.variant)
    assert variants == [True, False, False, False]


def test_kept_layers_are_the_original_modules_and_the_report_says_why(net, stats):
    state = convert(net, stats, METHODS["asq"](), layers=("attn.[qk]", "h*"))
    assert set(state.layers) == {"attn.v", "fc"}
    quantized = apply(net, state, StepClock(STEPS), FakeQuantBackend())
    assert set(quantized_layers(quantized)) == {"attn.v", "fc"}
    assert type(quantized.head) is nn.Linear and torch.equal(quantized.head.weight, net.head.weight)
    reasons = {row.fqn: row.reason for row in state.report}
    assert reasons == {
        "attn.q": "quant.keep has attn.[qk]",
        "attn.k": "quant.keep has attn.[qk]",
        "attn.v": "",
        "fc": "",
        "head": "quant.keep has h*",
    }


def test_sizes_count_kept_layers_as_they_were_and_kept_steps_twice(net, stats):
    method = METHODS["dynamic"]
    whole, layers, steps = (
        model_size(net, convert(net, stats, method(), **keep)) for keep in ({}, {"layers": ("fc",)}, {"steps": (0,)})
    )
    in_fp32 = {name: 4 * weight.numel() / 1e6 for name, weight in net.named_parameters()}
    codes = 4 / 32 * in_fp32["fc.weight"]
    grid = 2 * 4 * 24 + STEPS * 8  # scales and zero points, and the table of steps
    assert layers.full_precision - whole.full_precision == pytest.approx(in_fp32["fc.weight"])
    assert whole.total - layers.total == pytest.approx(codes + grid / 1e6 - in_fp32["fc.weight"])
    weights = sum(size for name, size in in_fp32.items() if name.endswith("weight"))
    assert steps.total - whole.total == pytest.approx(weights)
    assert steps.bits_per_weight - whole.bits_per_weight == pytest.approx(32)


def test_the_report_of_a_layer_names_its_kept_steps_and_counts_the_others_bits(net, stats):
    state = convert(net, stats, METHODS["asq"](), steps=(-1, 0))
    assert state.kept_steps == (0, 3)
    assert {row.kept_steps for row in state.report} == {(0, 3)}


def test_a_file_of_the_state_has_the_kept_steps(net, stats, tmp_path):
    state = convert(net, stats, METHODS["asq"](), steps=(1,))
    state.save(tmp_path / "state.safetensors")
    loaded = QuantState.load(tmp_path / "state.safetensors")
    assert loaded.kept_steps == (1,) and loaded.report == state.report
    pairs = zip(*(outputs(net, each, FakeQuantBackend()) for each in (state, loaded)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_operations_are_the_mean_over_steps(net, stats):
    quant = convert(net, stats, METHODS["asq"]()).layers["fc"]
    macs = 10 * 24 * 16
    found = layer_operations(quant, (24, 16), 10, kept_steps=(0,))
    assert (found.integer_macs, found.float_macs) == (0.75 * macs, 0.25 * macs)
    assert found.bit_operations == macs * (0.75 * 64 + 0.25 * 256)


def test_bits_that_follow_the_output_start_anew_after_a_kept_step(net):
    """Each output differs from the one before by half of that, so that with delta 0.7 a step is high when two have
    passed since the last high one. A kept step counts as a high one (DVD-Quant, eq. 11, whose D is then 0 again).
    """
    method = DVDQuantMethod(weight_bits=4, act_bits=4, high_bits=8, delta=0.7)
    bits = {}
    for kept in ((), (2,)):
        state = method.convert(net, None, num_steps=6, quantizable=lambda fqn: True, keep=Keep(steps=kept))
        clock = StepClock(6)
        switch = quantized_layers(apply(net, state, clock, FakeQuantBackend()))["fc"].inner.act.switch
        for step in range(6):
            clock.set(step)
            switch.observe(step, torch.full((1, 2), 1.5**step))
        (record,) = switch.records()
        bits[kept] = record["act_bits"]
    assert bits == {(): [8, 4, 4, 8, 4, 8], (2,): [8, 4, None, 4, 8, 4]}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((4,), "quant.keep_steps has 4, must be in 0..3, or from -4 to -1 counted from the end"),
        ((-5,), "quant.keep_steps has -5"),
        ((0, -4), "quant.keep_steps=[0, -4] names step 0 twice"),
        ((0, 1, 2, 3), "quant.keep_steps keeps all 4 steps"),
    ],
)
def test_steps_that_are_not_there_and_all_of_them_are_refused(steps, words):
    with pytest.raises(UserError, match=re.escape(words)):
        Keep(steps=steps).of_steps(STEPS)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (
            ("attn.qq",),
            "attn.qq matches none of the 5 layers that can be quantized; the nearest are attn.q",
        ),
        (("fc", "FC"), "quant.keep: FC matches none"),
        (("*",), "quant.keep=['*'] keeps all 5 layers"),
        (("attn.*", "fc", "head"), "keeps all 5 layers"),
    ],
)
def test_patterns_that_match_nothing_or_everything_are_refused(net, stats, patterns, words):
    with pytest.raises(UserError, match=re.escape(words)):
        Keep(layers=patterns).of_layers(LAYERS)
    with pytest.raises(UserError, match=re.escape(words)):
        convert(net, stats, METHODS["asq"](), layers=patterns)
