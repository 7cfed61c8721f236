"""Every method of conf/quant on a small denoiser: ranges as in the paper, and static means static."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tests.flat_layers import changed, flat
from vdq.backends import Backend, FakeQuantBackend, Int8CpuBackend, ReferenceBackend
from vdq.backends.cpu.matmul import KERNELS, failure
from vdq.backends.cpu.passes import TorchPasses
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler
from vdq.diffusion.schedule import Schedule
from vdq.methods import DynamicMethod, FullPrecisionMethod, Method, QvdMethod, StaticMethod
from vdq.models.guidance import Conditions, Reusing
from vdq.models.stdit import STDiT
from vdq.models.stdit_model import sample_stdit
from vdq.quant import (
    CallCounter,
    LayerStats,
    Observer,
    QuantState,
    Stats,
    apply,
    model_size,
    projections,
    quantized_layers,
)
from vdq.quant.codebook import Codebook
from vdq.quant.recorded_inputs import RecordedInputs
from vdq.quant.search import InputRecorder

STEPS = 20
CONF = Path(__file__).parents[2] / "conf" / "quant"
METHODS = sorted(path.stem for path in CONF.glob("*.yaml"))
SETTINGS = {"cw_tw", "tsw", "asq_tsw", "tsq_2tr", "tsq_10tr"}  # of a class of which asq, tsq_4tr and tsq_tsw are others
SLOW = pytest.mark.slow
REDUCTIONS = {
    "amin",
    "amax",
    "aminmax",
    "min",
    "max",
    "mean",
    "sum",
    "std",
    "var",
    "norm",
    "linalg_vector_norm",
    "sort",
}
SYNCHRONIZATIONS = {"_local_scalar_dense", "item", "nonzero"}


def made(name: str, **overrides: object) -> Method:
    alphas = OmegaConf.load(CONF.parent / "alpha" / "half.yaml")
    bits = {"weight": 8, "act": 8}
    cfg = OmegaConf.merge({"bits": bits, "alpha": alphas}, {"quant": OmegaConf.load(CONF / f"{name}.yaml")})
    options = OmegaConf.to_container(cfg, resolve=True)["quant"]
    options.pop("name", None)
    return instantiate(options | overrides)


def options_for(name: str, backend: Backend) -> dict[str, None]:
    """Those with which a backend runs the method: integer ones refuse the codebooks of temporal features."""
    return {"temporal_bits": None} if name == "qvd" and not backend.simulated else {}


def quantizable(fqn: str) -> bool:
    return fqn.startswith("blocks.")


@pytest.fixture(scope="module")
def denoiser(small_stdit) -> STDiT:
    return small_stdit(depth=1)


def inputs(step: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(2, 4, 2, 4, 4, generator=generator), torch.randn(2, 1, 6, 8, generator=generator)
    return x, torch.full((2,), 999 - 52 * step), y


def calibrated(denoiser: STDiT, captions: torch.Tensor | None = None) -> Stats:
    """With recorded inputs; captions take the place of those of every step."""
    clock = StepClock(STEPS)
    recorder = InputRecorder(denoiser, clock, quantizable, range(STEPS))
    with Observer(denoiser, clock, quantizable) as observer, recorder:
        for step in range(STEPS):
            clock.set(step)
            x, timestep, y = inputs(step)
            denoiser(x, timestep, y if captions is None else captions)
    error, change = torch.logspace(-3, 0, STEPS), torch.linspace(0, 0.2, STEPS)
    recorded = RecordedInputs.of_steps(recorder.inputs, recorder.places, error, change, "")
    return observer.stats(num_prompts=2).with_inputs(recorded)


@pytest.fixture(scope="module")
def stats(denoiser: STDiT) -> Stats:
    return calibrated(denoiser)


def convert(method: Method, denoiser: STDiT, stats: Stats | None) -> QuantState:
    timesteps = Schedule(STEPS).timesteps
    return method.convert(denoiser, stats, num_steps=STEPS, quantizable=quantizable, timesteps=timesteps)


@pytest.fixture(scope="module")
def state_of(denoiser: STDiT, stats: Stats) -> Callable[..., QuantState]:
    """What a method of conf/quant makes of the denoiser, once: nothing changes it."""
    return cache(lambda name, **options: convert(made(name, **options), denoiser, stats))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "fp16"])
def test_every_tensor_of_a_layer_lies_in_memory_as_a_file_gives_it_back(state_of, name):
    """A product of the same numbers in another layout may round differently, so a loaded layer might differ."""
    for fqn, params in state_of(name).layers.items():
        strided = [tensor for tensor, values in params.tensors().items() if not values.is_contiguous()]
        assert not strided, (fqn, strided)


def skip_refused(method: Method, backend: Backend) -> None:
    if (reason := backend.unknown_part(method.parts())) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_the_parts_that_its_layers_are_made_of(denoiser, stats, name):
    """At 6 bits, where activation bits of steps and videos differ; so a backend can refuse before calibration."""
    method = made(name, act_bits=6) if name != "fp16" else made(name)
    layers = convert(method, denoiser, stats).layers.values()
    assert method.parts() == frozenset().union(*(quant.features for quant in layers))


class Trace(TorchDispatchMode):
    """Names of the operations on floating-point tensors that run inside it, in-place variants without their underscore.

    Sums over integer codes are part of an integer product and no range of an activation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not (args and isinstance(args[0], torch.Tensor) and not args[0].is_floating_point()):
            self.names.add(func.overloadpacket.__name__.removesuffix("_"))
        return func(*args, **(kwargs or {}))


def with_kernel(kernel: str, **options: bool) -> Int8CpuBackend:
    """Skips where the kernel does not run 8 bits, as oneDNN's without VNNI; tests/backends has it with fewer."""
    if (reason := failure(kernel)) is not None:
        pytest.skip(f"{kernel}: {reason}")
    return Int8CpuBackend(kernel, **options)


def traceable(kernel: str, fused: bool) -> Int8CpuBackend:
    """With torch's elementwise passes, whose operations a trace sees; tests/backends has the compiled ones."""
    backend = with_kernel(kernel, fused=fused)
    backend.passes = TorchPasses()
    return backend


def test_methods_of_the_paper_are_there():
    paper = {"fp16", "dynamic", "cw_tw", "tsw", "asq", "asq_tsw", "tsq_2tr", "tsq_4tr", "tsq_10tr", "tsq_tsw"}
    assert paper <= set(METHODS)


@pytest.mark.parametrize(
    "backend",
    [
        *(partial(FakeQuantBackend, weight_sets) for weight_sets in ("keep", "packed", "requantize")),
        *(partial(traceable, kernel, fused) for kernel in KERNELS for fused in (True, False)),
    ],
    ids=["keep", "packed", "requantize", *(f"{kernel}{end}" for kernel in KERNELS for end in ("-fused", ""))],
)
@pytest.mark.parametrize("name", METHODS)
def test_static_methods_reduce_no_activation_at_run_time(name, backend, denoiser, state_of):
    """Traced in a whole forward, a static method runs no reduction and no host synchronization; dynamic is caught."""
    built = backend()
    options = options_for(name, built)
    method = made(name, **options)
    skip_refused(method, built)
    model = apply(denoiser, state_of(name, **options), StepClock(STEPS), built)
    with Trace() as trace:
        model(*inputs(0))
    assert {"native_layer_norm", "addmm"} <= trace.names  # the whole model ran
    assert ("round" in trace.names) == method.quantizes
    assert bool(trace.names & REDUCTIONS) == (not method.static)
    assert not trace.names & SYNCHRONIZATIONS


@pytest.mark.parametrize("fold", [False, True])
def test_tokens_of_static_plus_have_groups_and_text_has_none(fold, denoiser, stats):
    method = made("static_plus", token_groups="position", fold_rotation=fold)
    state = convert(method, denoiser, stats)
    groups = {fqn: quant.act.num_groups for fqn, quant in state.layers.items()}
    assert {fqn for fqn, count in groups.items() if count == 1} == {"blocks.0.cross_attn.kv_linear"}
    assert set(groups.values()) == {1, denoiser.pos_embed.shape[1]}
    assert {row.fqn: row.act_groups for row in state.report if row.kind == "static"} == groups
    x = inputs(0)
    found, plain = apply(denoiser, state, StepClock(STEPS), FakeQuantBackend())(*x), denoiser(*x)
    assert 0 < float((found - plain).norm() / plain.norm()) < 0.2


ALL = "shift rotation correction bits codes branch groups"


def codebooks(state: QuantState) -> QuantState:
    """The same levels for all layers."""
    book = Codebook(torch.linspace(-4, 4, 9), torch.linspace(-3.5, 3.5, 8))
    layers = {fqn: changed(quant, act=None, codebook=book) for fqn, quant in state.layers.items()}
    return replace(state, layers=layers)


@pytest.mark.parametrize(
    ("backend", "quantizer"),
    [
        (FakeQuantBackend, "round"),
        (partial(FakeQuantBackend, "packed"), "round"),
        (partial(traceable, "fp32_chunks", True), "round"),
        (FakeQuantBackend, "bucketize"),
    ],
)
def test_static_transforms_reduce_no_activation_at_run_time(backend, quantizer, denoiser, stats, extended_state):
    state = convert(made("asq_tsw"), denoiser, stats)
    state = codebooks(state) if quantizer == "bucketize" else extended_state(denoiser, state, ALL)
    model = apply(denoiser, state, StepClock(STEPS), backend())
    assert quantized_layers(model).keys() == state.layers.keys()
    with Trace() as trace:
        model(*inputs(0))
    assert quantizer in trace.names
    assert not trace.names & REDUCTIONS
    assert not trace.names & SYNCHRONIZATIONS


@pytest.mark.parametrize("backend", [Int8CpuBackend, ReferenceBackend])
@pytest.mark.parametrize("parts", ["bits", "groups", "branch", "shift rotation correction bits branch groups"])
def test_transforms_inside_the_model(parts, backend, denoiser, stats, extended_state):
    """Integer layers, which stand alone when they transform, compute what the simulation does."""
    clock = StepClock(STEPS)
    state = extended_state(denoiser, convert(made("tsq_4tr"), denoiser, stats), parts)
    ours, simulated = (apply(denoiser, state, clock, each()) for each in (backend, FakeQuantBackend))
    for step in (0, 7, 19):
        clock.set(step)
        expected = simulated(*inputs(step))
        assert (ours(*inputs(step)) - expected).norm() / expected.norm() < 0.02


def test_a_traced_graph_follows_the_clock(denoiser, state_of):
    """The step is data of the graph: one trace serves every time range."""
    clock = StepClock(STEPS)
    model = apply(denoiser, state_of("tsq_tsw"), clock, FakeQuantBackend())
    layer, x = model.blocks[0].mlp.fc1, torch.randn(2, 8, 32)
    graph = make_fx(lambda x: layer(x))(x)
    outputs = []
    for step in (0, 10, 19):
        clock.set(step)
        outputs.append(graph(x))
        assert torch.equal(outputs[-1], layer(x))
    assert not torch.equal(outputs[0], outputs[2])


def test_a_traced_graph_of_a_transform_follows_the_clock(denoiser, stats, extended_state):
    clock = StepClock(STEPS)
    state = extended_state(denoiser, convert(made("tsq_tsw"), denoiser, stats), ALL)
    layer = apply(denoiser, state, clock, FakeQuantBackend()).blocks[0].mlp.fc1
    x = torch.randn(2, 8, 32)
    graph = make_fx(lambda x: layer(x))(x)
    for step in (0, 10, 19):
        clock.set(step)
        assert torch.equal(graph(x), layer(x))


@pytest.fixture(scope="module")
def text_stats(denoiser: STDiT) -> Stats:
    """Of sampling, where the captions of all steps are the same."""
    return calibrated(denoiser, inputs(0)[2])


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (FakeQuantBackend, "constant"),
        (FakeQuantBackend, "changing"),
        (Int8CpuBackend, "constant"),
        (ReferenceBackend, "constant"),
    ],
    ids=["fake_quant", "changing", "int8_cpu", "reference"],
)
@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=SLOW if name in SETTINGS else ()) for name in METHODS), "token_shared"]
)
def test_reuse_changes_no_bit_of_the_latents(name, backend, text, denoiser, stats, text_stats):
    """Sampled in batches of 2 and 1 prompts. Calibrated on captions that change, kv_linear has other parameters in
    every range, else the same in all.
    """
    clock, sampler = StepClock(STEPS), DDIMSampler(steps=STEPS)
    if name == "token_shared":
        method = DynamicMethod(token_granularity="token_shared")
    else:
        method = made(name, **options_for(name, backend))
    skip_refused(method, backend())
    state = convert(method, denoiser, text_stats if text == "constant" else stats)
    model = apply(denoiser, state, clock, backend())
    y, null = torch.randn(2, 3, 1, 6, 8, generator=torch.Generator().manual_seed(3))
    prompts = Conditions(y, null[0, 0], torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0]]))

    def sample(net: STDiT | Reusing) -> list[torch.Tensor]:
        return [
            sample_stdit(net, prompts[rows], PromptNoise(0, range(3)[rows], (4, 2, 4, 4)), clock, sampler)
            for rows in (slice(0, 2), slice(2, 3))
        ]

    expected = sample(model)
    with CallCounter(model) as counter:
        assert all(map(torch.equal, sample(Reusing(model)), expected))
    if method.quantizes:
        quant = state.layers["blocks.0.cross_attn.kv_linear"]
        ranges = max(quant.weight.num_sets, quant.act.num_ranges)
        calls = 2 * (ranges if text == "changing" else 1)
        assert counter.calls["blocks.0.cross_attn.kv_linear"] == calls
        temporal = sum(not quantizable(fqn) for fqn in state.layers)
        assert counter.total == 2 * (12 + temporal) * STEPS + calls


def product(layer: torch.nn.Module) -> torch.nn.Module:
    """What multiplies integers, which a transform of the input stands around."""
    return getattr(layer, "inner", layer)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"fp16"}))
def test_integer_layers_compute_the_same_sums_inside_the_model(name, kernel, denoiser, state_of):
    """Every layer on the inputs it gets there, the parts of fused projections too, at steps of several ranges."""
    options = options_for(name, ReferenceBackend())
    skip_refused(made(name, **options), ReferenceBackend())
    clock, state = StepClock(STEPS), state_of(name, **options)
    model, twin = (
        apply(denoiser, state, clock, backend) for backend in (with_kernel(kernel, fused=False), ReferenceBackend())
    )
    layers, reference, seen = quantized_layers(model), quantized_layers(twin), set()

    def compare(fqn, module, args):
        assert torch.equal(module.accumulators(*args).int(), product(reference[fqn]).accumulators(*args))
        seen.add(fqn)

    for fqn, module in layers.items():
        product(module).register_forward_pre_hook(partial(compare, fqn))
    for step in (0, 7, 19):
        clock.set(step)
        ours, simple = model(*inputs(step)), twin(*inputs(step))
        assert (ours - simple).norm() / simple.norm() < 0.01  # a rounding may move a code of a later layer
    assert seen == set(state.layers) and "blocks.0.attn.q" in seen


@pytest.mark.parametrize("name", METHODS)
def test_eight_bits_stay_close_to_full_precision(name, denoiser, state_of):
    clock = StepClock(STEPS)
    model = apply(denoiser, state_of(name), clock, FakeQuantBackend())
    for step in (0, 7, 19):
        clock.set(step)
        exact, ours = denoiser(*inputs(step)), model(*inputs(step))
        error = float((ours - exact).norm() / exact.norm())
        assert error < 0.3 and (error == 0) == (name == "fp16")


@pytest.mark.parametrize(
    ("name", "weight_ranges", "act_ranges"),
    [
        ("cw_tw", 1, 1),
        ("tsw", 1, 20),
        ("asq", 1, 1),
        ("asq_tsw", 1, 20),
        ("tsq_2tr", 2, 2),
        ("tsq_4tr", 4, 4),
        ("tsq_10tr", 10, 10),
        ("tsq_tsw", 20, 20),
        ("dynamic", 1, 0),
    ],
)
def test_ranges_are_those_of_the_paper(name, weight_ranges, act_ranges, state_of):
    state = state_of(name)
    assert len(state.layers) == 13
    rows = [row for row in state.report if row.kind != "full_precision"]
    assert len(rows) == 13
    assert {(row.weight_ranges, row.act_ranges) for row in rows} == {(weight_ranges, act_ranges)}
    smoothed = {quant.part("smoothing") is not None for quant in state.layers.values()}
    assert smoothed == {name.startswith(("asq", "tsq"))}


def test_static_parameters_follow_the_statistics(denoiser, stats):
    """One layer by hand: factors of each range from its own steps, then the range of the smoothed activation."""
    method = StaticMethod(weight_bits=6, act_bits=4, num_time_ranges=2, alpha=0.3, momentum=0.9)
    params = flat(convert(method, denoiser, stats).layers["blocks.0.mlp.fc1"])
    seen, weight = stats.layers["blocks.0.mlp.fc1"], denoiser.blocks[0].mlp.fc1.weight
    for r, steps in enumerate((range(10), range(10, 20))):
        average = None
        for step in reversed(steps):
            a = seen.absmax[step].double()
            average = a if average is None else 0.9 * average + 0.1 * a
        s = average**0.3 / weight.abs().amax(0).double() ** 0.7
        torch.testing.assert_close(params.smoothing[r].double(), s, rtol=1e-5, atol=0)
        lo, hi = (seen.min[steps.start : steps.stop] / s).min(), (seen.max[steps.start : steps.stop] / s).max()
        assert float(params.act.scale[r]) == pytest.approx((float(hi) - float(lo)) / 15, rel=1e-5)
        rows = weight.double() * s
        widths = rows.amax(1).clamp(min=0) - rows.amin(1).clamp(max=0)
        torch.testing.assert_close(params.weight.scale[r, :, 0].double(), widths / 63, rtol=1e-5, atol=0)


def test_projections_of_one_input_have_factors_of_their_own(denoiser, stats):
    layers = convert(made("asq"), denoiser, stats).layers
    q, k = (flat(layers[f"blocks.0.attn.{name}"]).smoothing for name in "qk")
    assert not torch.equal(q, k)


def test_statistics_are_asked_for_only_when_used(denoiser):
    assert StaticMethod().needs("fc") == {"range"}
    assert StaticMethod(alpha=0.5).needs("fc") == {"range", "absmax"}
    assert DynamicMethod(alpha=0.625).needs("fc") == {"absmax"}
    for data_free in (DynamicMethod(), FullPrecisionMethod()):
        assert not data_free.needs("fc")
        convert(data_free, denoiser, None)


def test_full_precision_reports_every_layer_and_quantizes_none(denoiser):
    state = convert(FullPrecisionMethod(), denoiser, None)
    assert not state.layers and len(state.report) > 13
    assert {row.kind for row in state.report} == {"full_precision"}


def test_shared_token_ranges_run_in_the_model(denoiser, stats):
    clock = StepClock(STEPS)
    state = convert(DynamicMethod(token_granularity="token_shared"), denoiser, stats)
    model = apply(denoiser, state, clock, FakeQuantBackend())
    exact = denoiser(*inputs(0))
    assert (model(*inputs(0)) - exact).norm() / exact.norm() < 0.3


@pytest.mark.parametrize("depth", [2, pytest.param(28, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "sets"),
    [
        (StaticMethod(alpha=0.5, num_time_ranges="per_step"), 20),
        (StaticMethod(), 1),
        (DynamicMethod(), 1),
        (QvdMethod(), 1),
    ],
    ids=["tsq_tsw", "cw_tw", "dynamic", "qvd"],
)
def test_the_full_model_is_sized_without_its_weights(method, sets, depth):
    """STDiT-XL/2 on the meta device; a block holds 12 projections of 1152 x 1152 and an MLP of 8 times that."""
    with torch.device("meta"):
        model = STDiT(depth=depth)
    layers = {
        p.fqn: method.layer(p.weight, LayerStats.empty(STEPS, p.weight.shape[1], device="meta"), STEPS)
        for p in projections(model)
        if quantizable(p.fqn)
    }
    assert all(tensor.is_meta for params in layers.values() for tensor in params.tensors().values())
    size = model_size(model, QuantState(layers, STEPS))
    megabytes = depth * 20 * 1152**2 / 1e6  # at one byte each
    assert size.all_codes == pytest.approx(sets * megabytes)
    # Of 20 sets the weight, of four bytes each, stands for the codes: it takes less.
    assert (size.weights, size.sources) == pytest.approx((megabytes, 0) if sets == 1 else (0, 4 * megabytes))
    assert size.full_precision == pytest.approx(size.original - 4 * megabytes)
    assert 0 < size.parameters < 0.02 * size.all_codes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 1}, "weight_bits=1 must be an integer in 2..16"),
        ({"act_bits": 17}, "act_bits=17 must be an integer in 2..16"),
        ({"alpha": 1.5}, "alpha=1.5 must be a number in 0..1"),
        ({"momentum": -1}, "momentum=-1 must be a number in 0..1"),
        ({"ema_order": "up"}, "ema_order=up must be one of ascending_t, descending_t"),
    ],
)
@pytest.mark.parametrize("kind", [StaticMethod, DynamicMethod])
def test_wrong_options_are_refused_before_any_model(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_ranges_are_checked_against_the_steps():
    with pytest.raises(ValueError, match="num_time_ranges=21 must be in 1..20, the denoising steps, or per_step"):
        StaticMethod(num_time_ranges=21).check(20)
    with pytest.raises(ValueError, match="act_time_ranges=21 must be in 1..20"):
        StaticMethod(act_time_ranges=21).check(20)
    with pytest.raises(ValueError, match="token_granularity=per_group"):
        DynamicMethod(token_granularity="per_group")
    StaticMethod(num_time_ranges=10, alpha=0.5, act_time_ranges="per_step").check(20)
