"""Exports of whole models: the testbed over all its steps, and STDiT-XL/2 with random weights."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("onnx", reason="needs the packages of vdq[export]")
pytest.importorskip("onnxruntime", reason="needs the packages of vdq[export]")
pytest.importorskip("onnxscript", reason="needs the packages of vdq[export]")

from vdq.backends import FakeQuantBackend, Int8CpuBackend  # noqa: E402
from vdq.data.read_video import read_video  # noqa: E402
from vdq.diffusion.clock import StepClock  # noqa: E402
from vdq.diffusion.noise import PromptNoise  # noqa: E402
from vdq.diffusion.samplers import DDIMSampler  # noqa: E402
from vdq.export import artefact, onnx_graph, onnx_runtime  # noqa: E402
from vdq.export.base import QuantizedRun  # noqa: E402
from vdq.export.onnx_kernels import check_integer  # noqa: E402
from vdq.export.onnx_linear import OnnxBackend  # noqa: E402
from vdq.export.onnx_qdq import OnnxQdqExporter  # noqa: E402
from vdq.export.onnx_session import open_session  # noqa: E402
from vdq.export.sample import main  # noqa: E402
from vdq.methods import StaticMethod  # noqa: E402
from vdq.models.shapes import ShapesModel  # noqa: E402
from vdq.models.stdit import STDiT  # noqa: E402
from vdq.quant import LayerStats, Observer, QuantState, apply, projections  # noqa: E402

pytestmark = pytest.mark.slow
PROMPT = "A small red circle moves from left to right on a white background."
CALIBRATION = ["a large green square moving up on a black background", "a yellow triangle standing still"]


@pytest.fixture(scope="module")
def run() -> QuantizedRun:
    """ASQ + TSW W8A8 of the shipped testbed, calibrated on two prompts."""
    model, sampler, clock = ShapesModel(), DDIMSampler(), StepClock(20)
    with Observer(model.denoiser, clock, model.quantizable) as observer:
        model.sample(
            model.denoiser, model.encode(CALIBRATION), PromptNoise(1, [0, 1], model.latent_shape), clock, sampler
        )
    method = StaticMethod(alpha=0.5, act_time_ranges="per_step")
    state = method.convert(model.denoiser, observer.stats(num_prompts=2), num_steps=20, quantizable=model.quantizable)
    config = {
        "seed": 42,
        "model": {"_target_": "vdq.models.shapes.ShapesModel", "name": "shapes", "weights": None},
        "sampler": {"_target_": "vdq.diffusion.samplers.DDIMSampler", "steps": 20},
        "quant": {"name": "asq_tsw"},
        "backend": {},
    }
    return QuantizedRun(
        name="testbed",
        signature="0123456789",
        model=model,
        denoiser=model.denoiser,
        state=state,
        sampler=sampler,
        backend=FakeQuantBackend(),
        config=config,
    )


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("testbed") / "onnx_qdq"
    artefact.write(OnnxQdqExporter(), run, path)
    return path


def test_testbed_over_all_steps(run, folder):
    """Each step from the same latents, and the whole sampling on its own.

    A rounding of one part in 10^7 moves a code in a hundred thousand, and a moved code moves others: two backends of
    ours part just as far from each other, and both stay nearer than quantization is to full precision.
    """
    exported = onnx_runtime.load(folder)
    conditions = run.model.encode([PROMPT])
    noise = PromptNoise(42, [0], run.model.latent_shape)

    def trajectory(denoiser, clock):
        kept = []
        run.model.sample(denoiser, conditions, noise, clock, run.sampler, lambda _, x: kept.append(x.clone()))
        return torch.stack(kept)

    clock = StepClock(20)
    simulated = apply(run.denoiser, run.state, clock, FakeQuantBackend())
    integer = apply(run.denoiser, run.state, clock, Int8CpuBackend())
    ours, theirs, ints = (
        trajectory(net, owner)
        for net, owner in ((exported.denoiser, exported.clock), (simulated, clock), (integer, clock))
    )
    exact = trajectory(run.denoiser, clock)
    for step in range(20):
        far = [float((a[step] - b[step]).abs().max()) for a, b in ((ours, theirs), (ours, ints), (ints, theirs))]
        print(step, *(f"{value:.1e}" for value in far), f"{float((theirs[step] - exact[step]).abs().max()):.1e}")
    errors = (theirs - exact).flatten(1).norm(dim=1)
    for backend in (theirs, ints):
        apart = (ours - backend).flatten(1).norm(dim=1)
        assert (apart < errors).all() and apart[-1] < 2 * (ints - theirs)[-1].norm() + 1e-3


def test_testbed_step_from_equal_latents(run, folder):
    exported, clock = onnx_runtime.load(folder), StepClock(20)
    simulated, integer = (
        apply(run.denoiser, run.state, clock, each) for each in (FakeQuantBackend(), Int8CpuBackend())
    )
    conditions, noise = run.model.encode([PROMPT]), PromptNoise(7, [0], run.model.latent_shape)
    y = torch.cat([conditions.y, conditions.null.expand_as(conditions.y)])
    for step, timestep in enumerate(run.sampler.schedule.timesteps.tolist()):
        clock.set(step)
        exported.clock.set(step)
        inputs = noise.initial().expand(2, -1, -1, -1, -1), torch.tensor([timestep] * 2), y, conditions.mask
        ours, theirs, ints = (net(*inputs) for net in (exported.denoiser, simulated, integer))
        error = (theirs - run.denoiser(*inputs)).norm()
        assert (ours - theirs).norm() < min(error, 2 * (ints - theirs).norm()), step


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_command_line_makes_the_video(ending, folder, tmp_path):
    path = main([str(folder), "--prompt", PROMPT, "--out", str(tmp_path / f"video.{ending}")])
    frames = read_video(path).float()
    assert frames.shape == (16, 64, 64, 3)
    white, red = (frames > 200).all(-1), frames[..., 0] - frames[..., 1:].amax(-1) > 60
    assert white.float().mean() > 0.5 and red.float().mean() > 0.002
    first, last = (red[frame].nonzero()[:, 1].float().mean() for frame in (1, 14))
    assert last > first + 5


def test_other_weights_of_the_text_encoder_are_refused(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: model.weights=.* has no file latents.json"):
        main([str(folder), "--prompt", PROMPT, "--weights", str(tmp_path), "--out", str(tmp_path / "v.mp4")])


@pytest.mark.parametrize("depth", [2, 28])
def test_xl2_with_random_weights(depth, tmp_path):
    """Three weight sets; of depth 28, the whole STDiT-XL/2 on short latents, they are 2.2 GB."""
    net = STDiT(input_size=(2, 8, 8), depth=depth).eval().requires_grad_(False)
    late = [
        net.final_layer.linear,
        *(getattr(b, name).proj for b in net.blocks for name in ("attn_temp", "cross_attn")),
    ]
    for linear in late:  # zero at first
        torch.nn.init.normal_(linear.weight, std=0.02)
    method = StaticMethod(alpha=0.5, num_time_ranges=3)
    chosen = [p for p in projections(net) if p.fqn.startswith("blocks.")]
    layers = {p.fqn: method.layer(p.weight, synthetic_stats(p.weight.shape[1]), 3) for p in chosen}
    quantized = apply(net, QuantState(layers, 3), StepClock(3), OnnxBackend())
    specs = onnx_graph.layer_specs(quantized)
    files = onnx_graph.write_graphs(onnx_graph.traced(quantized), specs, tmp_path, constant=False, unsigned=True)
    weights = sum(p.weight.numel() for p in chosen)
    assert len(set(files)) == 3 and (tmp_path / onnx_graph.DATA).stat().st_size > 3 * weights
    assert depth < 28 or weights * 3 > 2**31
    check_integer(tmp_path / files[2], layers)
    clock = StepClock(3)
    clock.set(2)
    simulated = apply(net, QuantState(layers, 3), clock, FakeQuantBackend("requantize"))
    inputs = torch.randn(2, 4, 2, 8, 8), torch.tensor([10, 10]), torch.randn(2, 1, 120, 4096), torch.ones(1, 120).long()
    session = open_session(tmp_path / files[2])
    names = ("x", "timestep", "y", "mask")
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    found, expected = torch.from_numpy(session.run(None, feed)[0]), simulated(*inputs)
    assert (found - expected).norm() < 0.05 * expected.norm()


def synthetic_stats(channels: int) -> LayerStats:
    """Inputs of about unit variance at three steps."""
    width = 3 + torch.rand(3, channels)
    return LayerStats(-width, width, width.double(), torch.ones(3, dtype=torch.long))
