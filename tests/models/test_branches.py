"""Guidance of two calls a step: statistics and, where a method wants them, activation scales of each branch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from tests import tiny_pipelines
from tests.models.test_another_family import CONF, LATENT, STEPS, TEXT, ExpertsModel, Program, ToyModel, psnr
from vdq.backends import FakeQuantBackend, Int8CpuBackend, ReferenceBackend
from vdq.commands.run import run
from vdq.diffusion.clock import CONDITIONAL, UNCONDITIONAL, StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.export import packed
from vdq.export.onnx_linear import OnnxBackend
from vdq.methods import StaticMethod
from vdq.models.pipelines.model import DiffusersModel
from vdq.quant import Observer, Stats, apply, quantized_layers
from vdq.quant.stats import LayerStats
from vdq.stages.experiment import Experiment

BRANCHES = (CONDITIONAL, UNCONDITIONAL)
PER_BRANCH = "quant.per_branch=true"
EXPORTED = ("stages=[calibrate,quantize,sample,evaluate,export]", "export=packed")
Seen = dict[str, dict[tuple[int, str], list[Tensor]]]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    return Program(tmp_path_factory.mktemp("branches") / "runs")


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Oracle: by layer, step and branch, the inputs of plain calls of the network, prompt by prompt."""
    model, found, at = ToyModel(), {}, {}
    for name, module in model.denoiser.named_modules():
        if isinstance(module, nn.Linear):
            calls = found.setdefault(name, {})
            module.register_forward_pre_hook(
                lambda _, args, calls=calls: calls.setdefault(at["call"], []).append(args[0])
            )
    for index, text in enumerate(model.encode(Experiment(Program(Path("runs")).config()).prompts.calibration)):
        x = PromptNoise(42, [index], LATENT, purpose="calibration ").initial()
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(STEPS)
        for step, timestep in enumerate(scheduler.timesteps):
            told = {}
            for branch, given in zip(BRANCHES, (text, torch.zeros(1, TEXT)), strict=True):
                at["call"] = (step, branch)
                told[branch] = model.denoiser(texts=[given], hidden_states=x, timestep=timestep[None])
            guided = told[UNCONDITIONAL] + 7 * (told[CONDITIONAL] - told[UNCONDITIONAL])
            x = scheduler.step(guided, timestep, x).prev_sample
    return found


@pytest.fixture(scope="module")
def stats(program) -> Stats:
    program.run("quant=asq", "stages=[calibrate]")
    return Stats.load(next((program.runs / "cache").glob("stats_*.safetensors")))


def check(found: LayerStats, step: int, inputs: list[Tensor]) -> None:
    rows = torch.cat(inputs).numpy()
    assert int(found.rows[step]) == len(rows)
    for values, expected in (
        (found.min[step], rows.min((0, 1))),
        (found.max[step], rows.max((0, 1))),
        (found.absmax[step], np.abs(rows).max(1).mean(0)),
    ):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


def test_statistics_keep_the_branches_apart_and_join_them(seen, stats):
    assert len(stats.layers) == 20
    for fqn, layer in stats.layers.items():
        for step in range(STEPS):
            for branch, of_branch in zip(BRANCHES, layer.branches, strict=True):
                check(of_branch, step, seen[fqn][step, branch])
            check(layer, step, [x for branch in BRANCHES for x in seen[fqn][step, branch]])
        for step, branch in ((0, 0), (0, 1), (2, 0), (3, 1)):
            assert torch.equal(layer.calls.max[2 * step + branch], layer.branches[branch].max[step])
    text = stats.layers["layers.0.cross.to_k"].branches  # there is no text in the other branch
    assert float(text[0].max.max()) > 1 and float(text[1].max.abs().max()) == 0


def test_the_schedule_is_written_down(stats):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    assert stats.timesteps == tuple(scheduler.timesteps.tolist())


def convert(method: StaticMethod, stats: Stats):
    model = ToyModel()
    state = method.convert(model.denoiser, stats, num_steps=STEPS, quantizable=model.quantizable)
    return model.denoiser, state


@pytest.mark.parametrize("ranges", [1, 2, "per_step"])
def test_scales_are_those_of_the_calls_that_read_them(seen, stats, ranges):
    """Eight bits: scale = (max - min) / 255 of all inputs of a branch in a time range, both ends stretched to 0."""
    net, state = convert(StaticMethod(num_time_ranges=ranges, per_branch=True), stats)
    clock, x = StepClock(STEPS), torch.linspace(-3, 3, 32)[None, None]
    model = apply(net, state, clock, FakeQuantBackend())
    groups = np.array_split(np.arange(STEPS), STEPS if ranges == "per_step" else ranges)
    for fqn in ("layers.0.cross.to_q", "layers.1.ffn.up"):
        layer = quantized_layers(model)[fqn]
        for group in groups:
            for branch in BRANCHES:
                inputs = torch.cat([torch.cat(seen[fqn][step, branch]) for step in group])
                lo, hi = min(float(inputs.min()), 0.0), max(float(inputs.max()), 0.0)
                scale = (hi - lo) / 255
                zero = round(-lo / scale)
                expected = (torch.round(x / scale) + zero).clamp(0, 255).sub(zero).mul(scale)
                for step in group:
                    clock.set(int(step), branch)
                    torch.testing.assert_close(layer.act(x), expected, rtol=1e-4, atol=scale * 0.01)


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_weights_and_smoothing_serve_both_branches(stats, alpha):
    options = {"num_time_ranges": 2, "alpha": alpha}
    (_, ours), (_, plain) = (convert(StaticMethod(**options, per_branch=each), stats) for each in (True, False))
    for fqn, quant in ours.layers.items():
        other = plain.layers[fqn]
        assert torch.equal(quant.weight.scale, other.weight.scale)
        assert quant.weight.steps.tolist() == other.weight.steps.repeat_interleave(2).tolist()
        if alpha is not None:
            assert torch.equal(quant.part("smoothing").factors, other.part("smoothing").factors)
        assert len(quant.act.scale) == 2 * len(other.act.scale) and quant.act.num_ranges == other.act.num_ranges
        # The range of both branches together contains that of each, and is that of the wider one on either side.
        both = quant.act.scale.view(-1, 2)
        assert bool((both.amax(1) <= other.act.scale * (1 + 1e-6)).all())


@pytest.mark.parametrize("method", ["cw_tw", "tsq_tsw", "asq_tsw"])
def test_a_run_of_branches_is_scored_packed_and_reloaded(program, method):
    overrides = [f"quant={method}", PER_BRANCH]
    folder = program.run(*overrides, *EXPORTED)
    report = pd.read_csv(folder / "report.csv")
    assert report.loc[report["kind"] == "static", "per_branch"].all()
    assert json.loads((folder / "result.json").read_text())["changed"] == "per_branch=True"
    card = (folder / "export" / "packed" / "README.md").read_text()
    assert "for each branch of guidance (20 layers)" in card
    own = program.latents(*overrides)
    assert not torch.equal(own, program.latents(f"quant={method}"))
    model = packed.load(folder / "export" / "packed", model=ToyModel())
    prompts = Experiment(program.config()).prompts.evaluation
    assert torch.equal(model.sample(model.video_model().encode(prompts), PromptNoise(42, [0, 1], LATENT)), own)


def swapped(state):
    """The same with the scales of each branch in place of the other's."""
    layers = {
        fqn: replace(quant, act=replace(quant.act, steps=quant.act.steps.view(-1, 2).flip(1).flatten()))
        for fqn, quant in state.layers.items()
    }
    return replace(state, layers=layers)


@pytest.mark.parametrize("backend", [FakeQuantBackend, ReferenceBackend, Int8CpuBackend])
def test_each_call_reads_the_scales_of_its_branch(stats, backend):
    """Swapped scales are far worse, on every backend, and integers compute what the simulation does."""
    net, state = convert(StaticMethod(num_time_ranges="per_step", per_branch=True), stats)
    model, config = ToyModel(), Program(Path("runs")).config()
    experiment = Experiment(config)
    conditions = model.encode(experiment.prompts.evaluation)

    def sample(denoiser: nn.Module, clock: StepClock) -> Tensor:
        return model.sample(denoiser, conditions, PromptNoise(42, [0, 1], LATENT), clock, experiment.sampler)

    exact = sample(net, StepClock(STEPS))
    found = {}
    for name, each in {"right": state, "swapped": swapped(state)}.items():
        clock = StepClock(STEPS)
        found[name] = psnr(sample(apply(net, each, clock, backend()), clock), exact)
    assert found["right"] > found["swapped"] + 6


def test_a_traced_layer_follows_the_calls(stats):
    net, state = convert(StaticMethod(num_time_ranges="per_step", alpha=0.5, per_branch=True), stats)
    clock = StepClock(STEPS)
    layer = apply(net, state, clock, FakeQuantBackend()).layers[1].cross.to_q
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    graph = make_fx(lambda x: layer(x))(x)
    assert not {"amin", "amax", "min", "max", "mean", "aminmax"} & {str(node.target) for node in graph.graph.nodes}
    outputs = {}
    for step in (0, 3):
        for branch in BRANCHES:
            clock.set(step, branch)
            outputs[step, branch] = graph(x)
            assert torch.equal(outputs[step, branch], layer(x))
    assert not torch.equal(outputs[0, CONDITIONAL], outputs[0, UNCONDITIONAL])


def test_two_experts_have_branches_of_their_own(tmp_path):
    experts = Program(tmp_path / "runs", "ExpertsModel")
    folder = experts.run("quant=tsq_tsw", PER_BRANCH, *EXPORTED)
    stats = Stats.load(next((experts.runs / "cache").glob("stats_*.safetensors")))
    high, low = (stats.layers[f"{name}.layers.0.ffn.up"] for name in ExpertsModel.denoisers)
    assert [branch.rows.tolist() for branch in (*high.branches, *low.branches)] == [[10] * STEPS] * 4
    model = packed.load(folder / "export" / "packed", model=ExpertsModel())
    prompts = Experiment(experts.config()).prompts.evaluation
    own = experts.latents("quant=tsq_tsw", PER_BRANCH)
    assert torch.equal(model.sample(model.model.encode(prompts), PromptNoise(42, [0, 1], LATENT)), own)


def test_a_pipeline_of_two_calls_has_branches(tmp_path):
    """Wan. Oracle: hooks on the plain pipeline of diffusers, which takes the prompt first in every step."""
    folder, call = tiny_pipelines.save("wan", tmp_path / "pipeline"), tiny_pipelines.CALLS["wan"]
    plain, name, inputs = tiny_pipelines.loaded(folder), "blocks.0.ffn.net.0.proj", []
    plain.transformer.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    sampler, noise = Sampler(steps=STEPS, guidance_scale=4.0), PromptNoise(1, [0], None)
    named = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "generator": noise.generators()}
    exact = plain(prompt=["a cat"], output_type="latent", **named, **call).frames

    model = DiffusersModel(pretrained=str(folder), cache=str(tmp_path / "cache"), call=call, dtype="fp32")
    model.prepare(["a cat"], "cpu")

    def sample(denoiser: nn.Module, clock: StepClock) -> Tensor:
        return model.sample(denoiser, model.encode(["a cat"]), PromptNoise(1, [0], None), clock, sampler)

    clock = StepClock(STEPS)
    with torch.no_grad(), Observer(model.denoiser, clock, model.quantizable, model.packed) as observer:
        sample(model.denoiser, clock)
    stats = observer.stats(num_prompts=1, timesteps=tuple(model.timesteps(sampler).tolist()))
    assert len(inputs) == 2 * STEPS and len(stats.layers[name].calls.rows) == 2 * STEPS
    for number, x in enumerate(inputs):
        assert torch.equal(stats.layers[name].calls.min[number], x.amin((0, 1)))
        assert torch.equal(stats.layers[name].calls.max[number], x.amax((0, 1)))

    method = StaticMethod(num_time_ranges="per_step", alpha=0.5, per_branch=True)
    state = method.convert(model.denoiser, stats, num_steps=STEPS, quantizable=model.quantizable)
    found = {}
    for which, each in {"right": state, "swapped": swapped(state)}.items():
        clock = StepClock(STEPS)
        found[which] = psnr(sample(apply(model.denoiser, each, clock, FakeQuantBackend()), clock), exact)
    assert found["right"] > found["swapped"]


def test_statistics_without_branches_are_refused(stats):
    layers = {fqn: LayerStats(layer.min, layer.max, layer.abs_sum, layer.rows) for fqn, layer in stats.layers.items()}
    merged = Stats(layers, STEPS, 10)
    with pytest.raises(UserError, match="per_branch=true needs statistics of both branches"):
        convert(StaticMethod(per_branch=True), merged)
    one = {fqn: LayerStats.of_branches([layer.branches[0], LayerStats.empty(STEPS, layer.min.shape[1])])
           for fqn, layer in stats.layers.items()}  # fmt: skip
    with pytest.raises(UserError, match="at every step: 0 had no unconditional"):
        convert(StaticMethod(per_branch=True), Stats(one, STEPS, 10))


def test_one_call_a_step_has_no_branches(tmp_path):
    overrides = ["quant=asq", PER_BRANCH, "logger=csv", "metrics=fidelity", f"paths.runs={tmp_path}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        testbed = compose("config", overrides=overrides)
    with pytest.raises(UserError, match="quant.per_branch=true has no effect: .* both branches of guidance in one"):
        run(testbed)


def test_exporters_that_know_one_table_refuse_it():
    with pytest.raises(UserError, match="export=onnx_qdq does not run the part per_branch"):
        OnnxBackend().check_parts(StaticMethod(per_branch=True).parts())
