"""Whole runs with pipelines of diffusers: every method, backend and artefact does there what it does on the testbed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import tiny_pipelines
from vdq.commands.run import run
from vdq.diffusion.clock import StepClock
from vdq.errors import UserError
from vdq.installation import CONF
from vdq.models.pipelines.model import DiffusersModel
from vdq.quant import Stats

STEPS = 4
METHODS = sorted(path.stem for path in (CONF / "quant").glob("*.yaml"))
OPTIONS = {"qvd": ["quant.temporal_bits=null"], "tsq_10tr": ["quant.num_time_ranges=3"]}  # without which it refuses
LAYERS = {"wan": 20, "wan2_2": 40, "cogvideox": 12, "ltx": 20}

QUICK = ("wan", "cogvideox", "asq_tsw", "dynamic", "tsq_tsw", "static_plus")  # the others are slow tests


def marked(names: list[str]) -> list:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@dataclass(frozen=True)
class Program:
    """The stages with one tiny pipeline, below one folder."""

    name: str
    folder: Path

    def config(self, *overrides: str):
        prompts = self.folder / "prompts.txt"
        prompts.write_text("a cat walks\na red dog\n")
        own = ["model=diffusers", f"model.pretrained={self.folder / 'pipeline'}", "model.dtype=fp32", "logger=csv"]
        own += [f"dataset.prompts={prompts}", f"dataset.calibration_prompts={prompts}", f"sampler.steps={STEPS}"]
        own += [f"paths.runs={self.folder / 'runs'}", f"model.name={self.name}"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=[*own, *overrides])
        cfg.model.call = tiny_pipelines.CALLS[self.name]
        return cfg

    def run(self, *overrides: str) -> Path:
        return self.folder / "runs" / run(self.config(*overrides))

    def latents(self, *overrides: str) -> Tensor:
        samples = sorted((self.run(*overrides) / "samples").glob("[0-9]*.safetensors"))
        assert len(samples) == 2
        return torch.stack([load_file(path)["latents"] for path in samples])


def program_of(name: str, factory) -> Program:
    folder = factory.mktemp(name)
    tiny_pipelines.save(name, folder / "pipeline")
    return Program(name, folder)


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Program:
    return program_of("wan", tmp_path_factory)


@pytest.fixture(scope="module", params=marked(sorted(LAYERS)))
def program(request, tmp_path_factory) -> Program:
    return program_of(request.param, tmp_path_factory)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(b.abs().max() ** 2 / (a - b).square().mean()))


@pytest.mark.parametrize("method", marked([method for method in METHODS if method != "fp16"]))
def test_every_method_samples_is_scored_packed_and_sampled_from_its_artefact(wan, method):
    overrides = [f"quant={method}", "bits=w8a8", *OPTIONS.get(method, [])]
    folder = wan.run(*overrides, "stages=[calibrate,quantize,sample,evaluate,export]", "export=packed")
    ran = json.loads((folder / "sampling.json").read_text())
    assert ran["quantized_layers"] == 20 and ran["quantized_calls"] == 20 * STEPS * 2 * 2  # branches, prompts
    assert 20 < json.loads((folder / "metrics.json").read_text())["values"]["psnr"] < 100
    artefact = f"artefact={folder / 'export' / 'packed'}"
    assert torch.equal(wan.latents(*overrides, artefact), wan.latents(*overrides))


@pytest.mark.parametrize("method", ["tsq_tsw", "dynamic"])
def test_families_run_whole_and_integers_compute_what_the_simulation_does(program, method):
    simulated = program.latents(f"quant={method}", "bits=w8a8")
    reference = program.latents("quant=fp16")
    assert 20 < psnr(simulated, reference) < 100
    for backend in ("reference", "int8_cpu"):
        integers = program.latents(f"quant={method}", "bits=w8a8", f"backend={backend}")
        assert psnr(integers, simulated) > psnr(simulated, reference) + 5
    folder = program.run(f"quant={method}", "bits=w8a8")
    ran = json.loads((folder / "sampling.json").read_text())
    assert ran["quantized_layers"] == LAYERS[program.name]


def test_parameters_follow_the_steps(tmp_path_factory, monkeypatch):
    """With the clock stopped the parameters of the first step serve all, which costs far more than quantization."""
    wan = program_of("wan", tmp_path_factory)
    path = next((wan.folder / "pipeline" / "transformer").glob("*.safetensors"))
    loud = {name: tensor * (400 if "time_proj" in name else 1) for name, tensor in load_file(path).items()}
    save_file(loud, path, metadata={"format": "pt"})  # the timestep then says much, as in trained networks
    exact, options = wan.latents("quant=fp16"), ("quant=tsq_tsw", "bits=w8a8")
    following = psnr(wan.latents(*options), exact)
    move = StepClock.set
    monkeypatch.setattr(StepClock, "set", lambda clock, step, branch=None: move(clock, 0, branch))
    stopped = psnr(wan.latents(*options, "stages=[sample]", "force=true", "seed=42"), exact)
    assert following > stopped + 10


def test_an_artefact_of_branches_is_for_its_own_schedule(wan):
    overrides = ("quant=tsq_tsw", "quant.per_branch=true", "bits=w8a8")
    folder = wan.run(*overrides, "stages=[calibrate,quantize,sample,evaluate,export]", "export=packed")
    artefact, other = f"artefact={folder / 'export' / 'packed'}", "model.scheduler={flow_shift: 9.0}"
    assert torch.equal(wan.latents(*overrides, artefact), wan.latents(*overrides))
    with pytest.raises(UserError, match="the parameters are for 4 steps, 999 ... .*, the sampler has 4 steps, 999 ..."):
        wan.run(*overrides, artefact, other)
    nearest = json.loads((wan.run(*overrides, artefact, other, "quant.match=nearest") / "result.json").read_text())
    assert nearest["largest_timestep_distance"] > nearest["mean_timestep_distance"] > 0
    assert 10 < nearest["psnr"] < 100  # random weights hardly tell the steps apart


def test_an_interrupted_run_goes_on(wan):
    folder = wan.run("quant=asq", "bits=w8a8")
    video = folder / "samples" / "0001.safetensors"
    before = load_file(video)["latents"]
    video.unlink()
    (folder / "result.json").unlink()
    assert wan.run("quant=asq", "bits=w8a8") == folder
    assert torch.equal(load_file(video)["latents"], before)


@pytest.mark.slow
def test_two_processes_calibrate_and_sample_what_one_does(wan, tmp_path_factory):
    two = program_of("wan", tmp_path_factory)
    options = ("quant=asq", "bits=w8a8")
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    assert torch.equal(two.latents(*options, *ddp), wan.latents(*options))


def test_a_run_with_known_prompts_is_named_without_weights(wan, monkeypatch):
    folder = wan.run("quant=asq", "bits=w8a8")
    monkeypatch.setattr(DiffusersModel, "denoiser", property(lambda self: pytest.fail("weights were read")))
    assert wan.run("quant=asq", "bits=w8a8") == folder


def test_two_experts_are_calibrated_at_their_own_steps(tmp_path_factory):
    program = program_of("wan2_2", tmp_path_factory)
    program.run("quant=tsq_tsw", "bits=w8a8", "stages=[calibrate]")
    stats = Stats.load(next((program.folder / "runs" / "cache").glob("stats_*.safetensors")))
    scheduler = tiny_pipelines.build("wan2_2").scheduler
    scheduler.set_timesteps(STEPS)
    first = int((scheduler.timesteps >= 875).sum())  # boundary_ratio 0.875 of 1000
    for name, steps in (("transformer", range(first)), ("transformer_2", range(first, STEPS))):
        layer = stats.layers[f"{name}.blocks.0.ffn.net.2"]
        different = torch.unique(layer.max, dim=0)  # of a step outside the window, the nearest in it
        assert 0 < len(steps) == len(different)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quant=qvd"], "temporal_bits must be null without a model whose family has temporal_features"),
        (["quant=static_plus", "quant.fold_rotation=true"], "fold_rotation=true needs a model with known attention"),
        (["quant=asq", "sampler=ddim_20"], "sampler=DDIMSampler is Open-Sora's"),
        (["quant=asq", "model.quantizable=['nothing.*']"], "matches no linear of the model"),
    ],
)
def test_what_a_family_cannot_do_is_refused_by_name(wan, overrides, message):
    with pytest.raises(UserError, match=message):
        wan.run(*overrides)


def test_benchmark_of_a_block_and_of_the_driver_needs_no_prompts(wan):
    settings = (
        "quant=tsq_tsw",
        "bits=w8a8",
        "backend=int8_cpu",
        "benchmark.parts=[block,driver]",
        "benchmark.rounds=2",
    )
    published = ("dataset.prompts=null", "dataset.calibration_prompts=null")  # which would have to be fetched
    cfg = wan.config("stages=[benchmark]", *settings, *published)
    cfg.benchmark.call = tiny_pipelines.CALLS["wan"]
    assert run(cfg) == ""
    found = [json.loads(path.read_text()) for path in (wan.folder / "runs" / "benchmarks").glob("*.json")]
    cases = {content["part"]: content["cases"][0] for content in found}
    assert cases["block"]["title"] == "Wan block of width 24, 8 tokens (1 row of 8)"
    assert [row["name"] for row in cases["block"]["rows"]] == [
        "full precision",
        "tsq_tsw",
        "tsq_tsw, another step each call",
    ]
    assert cases["block"]["call"] == tiny_pipelines.CALLS["wan"] and cases["block"]["work"]["linear"] > 0
    plain, driven = cases["driver"]["rows"]
    assert driven["error"] == 0 and driven["speedup"]["median"] > 0
    assert not any(content["targets"] for content in found)


def test_size_that_the_pipeline_refuses_is_told_as_the_benchmarks(wan):
    cfg = wan.config("stages=[benchmark]", "quant=tsq_tsw", "benchmark.parts=[block]", "benchmark.call={height: 33}")
    with pytest.raises(UserError, match=r"benchmark.call=.*33"):
        run(cfg)
