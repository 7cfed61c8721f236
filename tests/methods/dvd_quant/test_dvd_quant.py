"""DVD-Quant on a small denoiser: data-free, one set of weights for both widths, every video on its own."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from vdq.backends import Backend, FakeQuantBackend, Int8CpuBackend, ReferenceBackend
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.observer import step_observers
from vdq.diffusion.samplers import DDIMSampler, IDDPMSampler
from vdq.errors import UserError
from vdq.export.onnx_qdq import OnnxQdqExporter
from vdq.export.packed import PackedExporter
from vdq.methods import DVDQuantMethod, DynamicMethod
from vdq.models.guidance import Conditions, Reusing
from vdq.models.stdit import STDiT
from vdq.models.stdit_model import sample_stdit
from vdq.quant import QuantState, apply, projections
from vdq.quant.report import mean_act_bits
from vdq.quant.rotation import fitting_block

STEPS, LATENT = 6, (4, 2, 4, 4)
DELTA = 1.06  # at which videos of these weights have different schedules


@pytest.fixture(scope="module")
def denoiser() -> STDiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = STDiT(
            input_size=LATENT[1:], hidden_size=32, depth=2, num_heads=2, caption_channels=8, model_max_length=6
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def prompts(count: int) -> Conditions:
    """Captions of different lengths."""
    y = torch.randn(count, 1, 6, 8, generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(6) < 1 + torch.arange(count)[:, None] % 6).long()
    return Conditions(y, torch.zeros(6, 8), mask)


def convert(denoiser: STDiT, **options: object) -> QuantState:
    return DVDQuantMethod(**options).convert(
        denoiser, None, num_steps=STEPS, quantizable=lambda fqn: fqn.startswith("blocks.")
    )


def sample(
    net: nn.Module, clock: StepClock, rows: slice, *, count: int = 3, kind: type = DDIMSampler, reuse: bool = True
) -> tuple[Tensor, list[dict]]:
    """Latents and schedules of some of `count` prompts in one batch."""
    noise = PromptNoise(0, range(count)[rows], LATENT)
    denoiser = Reusing(net) if reuse else net
    latents = sample_stdit(denoiser, prompts(count)[rows], noise, clock, kind(steps=STEPS))
    return latents, [record for observer in step_observers(net) for record in observer.records()]


def test_nothing_is_calibrated(denoiser):
    method = DVDQuantMethod()
    assert not any(method.needs(p.fqn) for p in projections(denoiser))
    state = convert(denoiser)  # with None for statistics
    assert len(state.layers) == 26 and {row.kind for row in state.report} == {"dynamic", "full_precision"}
    assert not any(quant.act.static for quant in state.layers.values()) and not method.static


def test_parameters_of_a_layer(denoiser):
    """W4 codes of the weight rotated in blocks that fit, on a grid that is no worse than min-max."""
    layer = convert(denoiser, rotation_block=64, scale_block=16).layers["blocks.0.mlp.fc2"]
    assert (layer.weight.bits, layer.act.bits, layer.act.high_bits, layer.act.delta) == (4, 4, 8, 0.09)
    assert (layer.part("rotation").block, layer.act.block) == (64, 16)
    weight = denoiser.blocks[0].mlp.fc2.weight.double().numpy()  # [32, 128]
    rotated = weight @ np.kron(np.eye(2), hadamard(64) / 8)

    def error(dequantized: np.ndarray) -> float:
        return ((dequantized - rotated) ** 2).sum()

    lo, hi = np.minimum(rotated.min(1, keepdims=True), 0), np.maximum(rotated.max(1, keepdims=True), 0)
    scale = (hi - lo) / 15
    z = np.rint(-lo / scale)
    min_max = (np.clip(np.rint(rotated / scale) + z, 0, 15) - z) * scale
    ours = layer.dequantized_weight(denoiser.blocks[0].mlp.fc2.weight, 0).double().numpy()
    assert 0 < error(ours) < 0.95 * error(min_max)


@pytest.mark.parametrize(("width", "block"), [(1152, 128), (4608, 128), (256, 128), (96, 32), (24, 8), (7, 1), (4, 4)])
def test_blocks_fit_the_width(width, block):
    assert fitting_block(width, 128) == block


def test_both_widths_share_the_weights(denoiser):
    low, high = (convert(denoiser, act_bits=bits).layers["blocks.1.attn.q"] for bits in (4, 8))
    weight = denoiser.blocks[1].attn.qkv.weight[:32]
    assert torch.equal(low.weight_codes(weight, 0), high.weight_codes(weight, 0)) and low.weight.num_sets == 1


@pytest.mark.parametrize("kind", [DDIMSampler, IDDPMSampler])
def test_a_video_and_its_bits_do_not_depend_on_the_batch(denoiser, kind):
    clock = StepClock(STEPS)
    net = apply(denoiser, convert(denoiser, delta=DELTA), clock, FakeQuantBackend())
    together, schedules = sample(net, clock, slice(0, 3), kind=kind)
    bits = np.array([schedule["act_bits"] for schedule in schedules])
    assert (bits[:, 0] == 8).all() and set(bits.flat) == {4, 8} and (bits[0] != bits[1]).any()
    for rows in (slice(0, 1), slice(2, 3), slice(1, 3)):
        alone, schedule = sample(net, clock, rows, kind=kind)
        assert [s["act_bits"] for s in schedule] == bits[rows].tolist()
        torch.testing.assert_close(alone, together[rows], rtol=1e-3, atol=1e-3 * float(together.abs().max()))


def test_schedule_is_that_of_the_sampled_outputs(denoiser):
    """Oracle: the estimates that the network really gave, and eq. 11 in numpy."""
    clock, estimates = StepClock(STEPS), []
    net = apply(denoiser, convert(denoiser, delta=DELTA), clock, FakeQuantBackend())
    net.register_forward_hook(lambda module, args, output: estimates.append(output))
    _, schedules = sample(net, clock, slice(0, 3))
    for video, schedule in enumerate(schedules):
        halves = [(y[video, :4].double().numpy(), y[3 + video, :4].double().numpy()) for y in estimates]
        guided = [np.concatenate([n[:3] + 7 * (c[:3] - n[:3]), c[3:]]) for c, n in halves]
        change = [0.0] + [np.abs(b - a).sum() / np.abs(a).sum() for a, b in zip(guided, guided[1:], strict=False)]
        np.testing.assert_allclose(schedule["change"], change, rtol=1e-4)
        total, bits = 0.0, [8]
        for step in range(1, STEPS):
            total += change[step - 1]
            bits.append(8 if total >= DELTA else 4)
            total = 0.0 if total >= DELTA else total
        assert schedule["act_bits"] == bits


def test_reused_captions_follow_the_bits(denoiser):
    """Keys and values are computed again when a video's bits change; not a bit of the latents differs."""
    clock = StepClock(STEPS)
    net = apply(denoiser, convert(denoiser, delta=DELTA), clock, FakeQuantBackend())
    reused, plain = (sample(net, clock, slice(0, 3), reuse=reuse) for reuse in (True, False))
    assert torch.equal(reused[0], plain[0]) and reused[1] == plain[1]


@pytest.mark.parametrize("bits", [8, 12])
def test_nothing_switches_where_the_low_width_is_not_low(denoiser, bits):
    clock, state = StepClock(STEPS), convert(denoiser, act_bits=bits)
    net = apply(denoiser, state, clock, FakeQuantBackend())
    assert not step_observers(net) and mean_act_bits(state) == bits


def test_delta_zero_is_always_high(denoiser):
    clock = StepClock(STEPS)
    always, switched = (convert(denoiser, **options) for options in ({"act_bits": 8}, {"delta": 0.0}))
    latents = [sample(apply(denoiser, s, clock, FakeQuantBackend()), clock, slice(0, 3))[0] for s in (always, switched)]
    assert torch.equal(*latents) and mean_act_bits(switched) is None


def test_low_bits_change_the_video(denoiser):
    clock = StepClock(STEPS)
    nets = [apply(denoiser, convert(denoiser, delta=d), clock, FakeQuantBackend()) for d in (0.0, 1e9)]
    exact, _ = sample(denoiser, clock, slice(0, 3))
    high, low = (float((sample(net, clock, slice(0, 3))[0] - exact).norm() / exact.norm()) for net in nets)
    assert 0 < high < low


def test_parameters_survive_the_file(denoiser, tmp_path):
    state = convert(denoiser, scale_block=8)
    state.save(tmp_path / "state.safetensors")
    loaded, clock = QuantState.load(tmp_path / "state.safetensors"), StepClock(STEPS)
    results = [sample(apply(denoiser, s, clock, FakeQuantBackend()), clock, slice(0, 3)) for s in (state, loaded)]
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    json.dumps(results[0][1])


def test_layers_that_switch_differently_are_refused(denoiser):
    states = [convert(denoiser, delta=delta) for delta in (0.1, 0.2)]
    mixed = QuantState(states[0].layers | {"blocks.0.mlp.fc1": states[1].layers["blocks.0.mlp.fc1"]}, STEPS)
    with pytest.raises(ValueError, match=r"must be one of \[\(4, 8, 0.1\), \(4, 8, 0.2\)\]"):
        apply(denoiser, mixed, StepClock(STEPS), FakeQuantBackend())


@pytest.mark.parametrize("backend", [ReferenceBackend(), Int8CpuBackend()], ids=["reference", "int8_cpu"])
def test_integer_backends_say_why_they_refuse(denoiser, backend: Backend):
    with pytest.raises(UserError, match=f"q: backend={backend.name} does not run the part bit_switch"):
        apply(denoiser, convert(denoiser), StepClock(STEPS), backend)


def test_static_exports_refuse():
    arguments = (DDIMSampler(), FakeQuantBackend())
    with pytest.raises(ValueError, match="onnx_qdq cannot export DVDQuantMethod: its ranges are measured at run time"):
        OnnxQdqExporter().check(DVDQuantMethod(), *arguments)
    PackedExporter().check(DVDQuantMethod(), *arguments)  # stores weights, measures as before


def test_static_and_dynamic_methods_have_known_bits(denoiser):
    state = DynamicMethod(act_bits=6).convert(denoiser, None, num_steps=STEPS, quantizable=lambda fqn: True)
    assert mean_act_bits(state) == 6
    assert mean_act_bits(QuantState({}, STEPS)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 1}, "weight_bits=1 must be an integer in 2..16"),
        ({"act_bits": 17}, "act_bits=17 must be an integer in 2..16"),
        ({"high_bits": 0}, "high_bits=0 must be an integer in 2..16"),
        ({"delta": -1.0}, "delta=-1.0 must be a number of at least 0"),
        ({"rotation_block": 96}, "rotation_block=96 must be a power of two"),
        ({"scale_block": 0}, "scale_block=0 must be a power of two"),
        ({"num_bounds": 0}, "num_bounds=0 must be an integer of at least 1"),
        ({"tolerance": 2.0}, "tolerance=2.0 must be a number in 0..1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DVDQuantMethod(**options)
