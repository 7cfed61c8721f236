"""A family that has nothing of STDiT goes the same road: velocity prediction with a scheduler of diffusers, two calls a
step, prompts as a list of tensors, float timesteps, arguments by name, other names of layers, no packed captions.
"""

import json
import sys
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vdq.commands.run import run
from vdq.diffusion.clock import CONDITIONAL, UNCONDITIONAL, StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.observer import step_observers
from vdq.errors import UserError
from vdq.export import packed
from vdq.models.base import VideoModel
from vdq.models.driver import clock_follows
from vdq.models.family import Family
from vdq.models.frames import to_uint8
from vdq.quant import Stats
from vdq.stages.experiment import Experiment

CONF = Path(__file__).parents[2] / "conf"
MODULE = "another_family"  # by which the configuration finds this file
sys.modules[MODULE] = sys.modules[__name__]
WIDTH, TEXT, WORDS, STEPS = 32, 16, 6, 4
LATENT = (4, 2, 4, 4)
PROMPTS = ["a red square", "a blue circle moves", "an amber star"]
INPUTS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out", "cross.to_q", "cross.to_k", "cross.to_v"]
INPUTS += ["cross.to_out", "ffn.up", "ffn.down"]


class Attention(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q, self.to_out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.to_k, self.to_v = nn.Linear(context, WIDTH), nn.Linear(context, WIDTH)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (2, -1)).transpose(1, 2) for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.cross = Attention(WIDTH), Attention(TEXT)
        self.ffn = nn.Sequential()
        self.ffn.add_module("up", nn.Linear(WIDTH, 2 * WIDTH))
        self.ffn.add_module("act", nn.SiLU())
        self.ffn.add_module("down", nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, texts: Tensor, shift: Tensor) -> Tensor:
        modulated = F.layer_norm(x, [WIDTH]) + shift
        x = x + self.attn(modulated, modulated)
        x = x + self.cross(x, texts)
        return x + self.ffn(F.layer_norm(x, [WIDTH]) + shift)


class Velocity(nn.Module):
    """hidden_states [B, 4, 2, 4, 4], timestep [B] float, texts a list of [words, 16] -> velocity of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.unembed = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.time = nn.Linear(1, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, *, texts: list[Tensor], hidden_states: Tensor, timestep: Tensor) -> Tensor:
        assert timestep.dtype == torch.float32 and len(texts) == len(hidden_states)
        padded = torch.stack([F.pad(text, (0, 0, 0, WORDS - len(text))) for text in texts])
        shift = torch.tanh(self.time(timestep[:, None] / 500))[:, None]
        x = self.embed(hidden_states.flatten(2).transpose(1, 2))
        for layer in self.layers:
            x = layer(x, padded, shift)
        return self.unembed(x).transpose(1, 2).reshape(hidden_states.shape)


FAMILY = Family(name="toy", denoisers=(f"{__name__}.Velocity",), quantizable=("layers.*",), calls_a_step=2)


class ToyModel(VideoModel):
    """Its conditions are a list of tensors of different length."""

    family, latent_shape, fps = FAMILY, LATENT, 4

    def __init__(self) -> None:
        self.denoiser = self._built()

    def _built(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(len(self.denoisers))
            nets = {name: Velocity() for name in self.denoisers}
        net = nn.ModuleDict(nets) if len(nets) > 1 else next(iter(nets.values()))
        return net.eval().requires_grad_(False)

    def check(self, sampler) -> None:
        if hasattr(sampler, "schedule"):
            raise UserError("sampler must be own_20: this model brings its scheduler along")

    def timesteps(self, sampler) -> Tensor:
        return self._scheduler(sampler).timesteps

    def encode(self, prompts: list[str]) -> list[Tensor]:
        generators = [torch.Generator().manual_seed(sum(map(ord, prompt))) for prompt in prompts]
        return [
            torch.randn(min(len(prompt.split()), WORDS), TEXT, generator=generator)
            for prompt, generator in zip(prompts, generators, strict=True)
        ]

    def sample(self, denoiser, conditions, noise, clock, sampler, callback=None, observers=()) -> Tensor:
        scheduler, x = self._scheduler(sampler), noise.initial()
        nothing = [torch.zeros(1, TEXT)] * len(conditions)
        watching = [*step_observers(denoiser), *observers]
        for step, timestep in enumerate(scheduler.timesteps):
            net = self.expert(denoiser, step, sampler)
            given = {"hidden_states": x, "timestep": timestep.expand(len(x))}
            with clock_follows(clock, net, scheduler, FAMILY.calls_a_step):
                told = net(texts=conditions, **given), net(texts=nothing, **given)
            estimate = told[1] + sampler.guidance_scale * (told[0] - told[1])
            x = scheduler.step(estimate, timestep, x).prev_sample
            for observer in watching:
                observer.observe(step, estimate)
            if callback:
                callback(step, x)
        return x

    def expert(self, denoiser: nn.Module, step: int, sampler) -> nn.Module:
        if len(self.denoisers) == 1:
            return denoiser
        return next(denoiser[name] for name, steps in self.windows(sampler).items() if step in steps)

    def decode(self, latents: Tensor) -> Tensor:
        return to_uint8(latents[:, :3].repeat_interleave(4, -1).repeat_interleave(4, -2).tanh())

    @property
    def weights_sha256(self) -> str:
        return "5" * 63 + str(len(self.denoisers))

    @staticmethod
    def _scheduler(sampler) -> FlowMatchEulerDiscreteScheduler:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(sampler.steps)
        return scheduler


class ExpertsModel(ToyModel):
    """Two denoisers, the first of which works at the first step only."""

    denoisers = ("high_noise", "low_noise")

    def windows(self, sampler) -> dict[str, range]:
        return {"high_noise": range(1), "low_noise": range(1, sampler.steps)}


@cache  # composing takes as long as the toy does
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@dataclass(frozen=True)
class Program:
    """The stages with the toy as their model, below one folder."""

    runs: Path
    model: str = "ToyModel"

    def config(self, *overrides: str):
        own = ["sampler=own_20", f"sampler.steps={STEPS}", "metrics=fidelity", "logger=csv", "dataset.num_prompts=2"]
        own += [f"paths.runs={self.runs}", f"paths.results={self.runs / 'results'}"]
        cfg = deepcopy(composed("alpha=half", *own, *overrides))
        cfg.model = {"_target_": f"{MODULE}.{self.model}", "name": self.model}
        return cfg

    def run(self, *overrides: str) -> Path:
        return self.runs / run(self.config(*overrides))

    def latents(self, *overrides: str) -> Tensor:
        samples = sorted((self.run(*overrides) / "samples").glob("[0-9]*.safetensors"))
        assert len(samples) == 2
        return torch.stack([load_file(path)["latents"] for path in samples])


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    return Program(tmp_path_factory.mktemp("another_family") / "runs")


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(b.abs().max() ** 2 / (a - b).square().mean()))


def test_the_clock_is_told_step_and_branch_of_every_call():
    model, clock, told = ToyModel(), StepClock(STEPS), []
    model.denoiser.register_forward_pre_hook(lambda *_: told.append((clock.step, int(clock.index), clock.branch)))
    sampler = Program(Path()).config().sampler
    model.sample(model.denoiser, model.encode(PROMPTS), PromptNoise(1, range(3), LATENT), clock, sampler)
    assert told == [(step, step, branch) for step in range(STEPS) for branch in (CONDITIONAL, UNCONDITIONAL)]


def test_a_call_too_many_is_no_step():
    net, scheduler = nn.Linear(1, 1), ToyModel._scheduler(Program(Path()).config().sampler)
    with (
        clock_follows(StepClock(STEPS), net, scheduler),
        pytest.raises(RuntimeError, match="step 0 calls the denoiser"),
    ):
        net(net(torch.ones(1)))


@pytest.fixture(scope="module")
def seen() -> dict[str, list[list[Tensor]]]:
    """Oracle: by layer and step, the inputs of plain calls of the network, prompt by prompt and branch by branch."""
    model, found = ToyModel(), {}
    prompts = Experiment(Program(Path("runs")).config()).prompts.calibration
    for index, text in enumerate(model.encode(prompts)):
        x = PromptNoise(42, [index], LATENT, purpose="calibration ").initial()
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(STEPS)
        for step, timestep in enumerate(scheduler.timesteps):
            outputs = []
            for branch in (text, torch.zeros(1, TEXT)):
                hooks = [
                    module.register_forward_pre_hook(
                        lambda _, args, name=name, step=step: found.setdefault(name, [[] for _ in range(STEPS)])[
                            step
                        ].append(args[0])
                    )
                    for name, module in model.denoiser.named_modules()
                    if isinstance(module, nn.Linear)
                ]
                outputs.append(model.denoiser(texts=[branch], hidden_states=x, timestep=timestep[None]))
                for hook in hooks:
                    hook.remove()
            x = scheduler.step(outputs[1] + 7 * (outputs[0] - outputs[1]), timestep, x).prev_sample
    return found


@pytest.mark.parametrize(
    "batch_size", [1, 4, pytest.param(3, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow)]
)
def test_statistics_are_the_same_at_every_batch_size(seen, tmp_path, batch_size):
    program = Program(tmp_path / "runs")
    run(program.config("quant=asq", "stages=[calibrate]", f"batch_size={batch_size}"))
    stats = Stats.load(next((program.runs / "cache").glob("stats_*.safetensors")))
    assert set(stats.layers) == {f"layers.{number}.{name}" for number in range(2) for name in INPUTS}
    for fqn, layer in stats.layers.items():
        for step, inputs in enumerate(seen[fqn]):
            rows = torch.cat(inputs)
            assert int(layer.rows[step]) == len(rows) == 20  # ten prompts, two branches
            for found, expected in (
                (layer.min[step], rows.amin((0, 1))),
                (layer.max[step], rows.amax((0, 1))),
                (layer.absmax[step], rows.abs().amax(1).mean(0)),
            ):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


METHODS = sorted(path.stem for path in (CONF / "quant").glob("*.yaml"))
SETTINGS = {"cw_tw", "tsw", "asq_tsw", "tsq_2tr", "tsq_4tr", "tsq_10tr"}  # of the class that asq and tsq_tsw are of
OPTIONS = {"qvd": ["quant.temporal_bits=null"], "tsq_10tr": ["sampler.steps=10"]}  # without which they refuse


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] if name in SETTINGS else []) for name in METHODS]
)
def test_every_method_samples_is_scored_packed_and_reloaded(program, method):
    overrides = [f"quant={method}", "bits=w8a8", *OPTIONS.get(method, [])]
    if method == "fp16":
        assert torch.isfinite(program.latents(*overrides)).all()
        return
    folder = program.run(*overrides, "stages=[calibrate,quantize,sample,evaluate,export]", "export=packed")
    ran = json.loads((folder / "sampling.json").read_text())
    assert ran["quantized_layers"] == 20 and ran["quantized_calls"] > 0
    scores = json.loads((folder / "metrics.json").read_text())["values"]
    assert 20 < scores["psnr"] < 100
    own = program.latents(*overrides)
    model = packed.load(folder / "export" / "packed", model=ToyModel())
    prompts = Experiment(program.config(*overrides)).prompts.evaluation
    again = model.sample(model.video_model().encode(prompts), PromptNoise(42, [0, 1], LATENT))
    assert torch.equal(again, own)
    if method == "tsq_tsw":
        from_artefact = program.latents(*overrides, f"artefact={folder / 'export' / 'packed'}")
        assert torch.equal(from_artefact, own)


@pytest.mark.parametrize("method", ["asq", "tsq_tsw", "dynamic"])
def test_integers_compute_what_the_simulation_does(program, method):
    simulated, reference = program.latents(f"quant={method}"), program.latents("quant=fp16")
    integers = program.latents(f"quant={method}", "backend=int8_cpu")
    assert psnr(integers, simulated) > psnr(simulated, reference) + 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quant=qvd"], "temporal_bits must be null without a model whose family has temporal_features"),
        (["quant=static_plus", "quant.fold_rotation=true"], "fold_rotation=true needs a model with known attention"),
        (["quant=static_plus", "quant.token_groups=frame"], "token_groups=frame needs a model with a known order"),
        (["quant=tsq_10tr"], "num_time_ranges=10 must be in 1..4"),
        (["quant=asq", "sampler=ddim_20"], "this model brings its scheduler along"),
        (
            ["quant=asq", "export=onnx_qdq", "stages=[export]"],
            "export=onnx_qdq knows STDiT, .*, not toy",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(program, overrides, message):
    with pytest.raises(UserError, match=message):
        program.run(*overrides)


def test_an_artefact_that_does_not_describe_its_network_asks_for_the_model(program):
    folder = program.run("quant=asq", "stages=[calibrate,quantize,sample,evaluate,export]", "export=packed")
    with pytest.raises(UserError, match="can be loaded with `model`"):
        packed.load(folder / "export" / "packed")


def test_parameters_follow_the_steps(program):
    """Ranges and weights of a step are better than one for all, unless they are used at another step."""
    exact = program.latents("quant=fp16")
    one = psnr(program.latents("quant=cw_tw"), exact)
    assert psnr(program.latents("quant=tsw"), exact) > one
    assert psnr(program.latents("quant=tsq_tsw", "quant.alpha=0.05"), exact) > one  # little smoothing, a set a step


@pytest.mark.parametrize("method", ["tsq_tsw", "static_plus"])
def test_two_experts_are_calibrated_at_their_own_steps(tmp_path, method):
    experts = Program(tmp_path / "runs", "ExpertsModel")
    folder = experts.run(f"quant={method}", "stages=[calibrate,quantize,sample,evaluate,export]", "export=packed")
    ran = json.loads((folder / "sampling.json").read_text())
    assert ran["quantized_layers"] == 40 and ran["quantized_calls"] == 20 * STEPS * 2
    stats = Stats.load(next((experts.runs / "cache").glob("stats_*.safetensors")))
    high, low = (stats.layers[f"{name}.layers.0.ffn.up"] for name in ExpertsModel.denoisers)
    assert high.rows.tolist() == low.rows.tolist() == [20] * STEPS
    assert torch.equal(high.max, high.max[:1].expand_as(high.max))  # its one step stands for those it never works at
    assert torch.equal(low.max[0], low.max[1]) and not torch.equal(low.max[1], low.max[2])
    own, exact = experts.latents(f"quant={method}"), experts.latents("quant=fp16")
    assert np.isfinite(psnr(own, exact)) and psnr(own, exact) > 20
    model = packed.load(folder / "export" / "packed", model=ExpertsModel())
    prompts = Experiment(experts.config()).prompts.evaluation
    assert torch.equal(model.sample(model.model.encode(prompts), PromptNoise(42, [0, 1], LATENT)), own)
