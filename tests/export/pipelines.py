"""Quantized runs of tiny pipelines of diffusers, and what they sample."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from tests import tiny_pipelines
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import Sampler
from vdq.export.base import QuantizedRun
from vdq.models.pipelines.model import DiffusersModel
from vdq.quant import Observer, Stats, apply
from vdq.stages.experiment import Experiment

CONF = Path(__file__).parents[2] / "conf"
STEPS, GUIDANCE, PROMPT = 4, 4.0, "a red dog"
SAMPLER = Sampler(steps=STEPS, guidance_scale=GUIDANCE)
FOLDER = TemporaryDirectory()


@cache
def pipeline_folder(name: str) -> Path:
    """The plain pipeline, as files."""
    return tiny_pipelines.save(name, Path(FOLDER.name) / name)


@cache
def model_of(name: str) -> DiffusersModel:
    settings = {"call": tiny_pipelines.CALLS[name], "dtype": "fp32", "cache": f"{FOLDER.name}/cache"}
    model = DiffusersModel(pretrained=str(pipeline_folder(name)), **settings)
    model.prepare([PROMPT], "cpu")
    aligned(model.denoiser)
    return model


def aligned(net: nn.Module) -> nn.Module:
    """With its tensors where torch allocates them: the rounding of sums depends on how a mapped file aligns them."""
    for tensor in (*net.parameters(), *net.buffers()):
        if type(tensor.data) is Tensor:  # others multiply integers, which are exact
            tensor.data = tensor.data.clone()
    return net


def sampled(name: str, denoiser, clock: StepClock) -> Tensor:
    model = model_of(name)
    return model.sample(denoiser, model.encode([PROMPT]), PromptNoise(1, [0], None), clock, SAMPLER)


def full_precision(name: str) -> Tensor:
    return sampled(name, model_of(name).denoiser, StepClock(STEPS))


def plain_call(pipeline, name: str, steps: int = STEPS, seed: int | None = None) -> Tensor:
    """What a pipeline that anybody loaded makes of the same prompt and noise, or of that of torch's own seed."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "output_type": "latent"}
    own = [torch.Generator().manual_seed(seed)] if seed is not None else None
    generators = own or PromptNoise(1, [0], None).generators()
    return pipeline(prompt=[PROMPT], generator=generators, **settings, **tiny_pipelines.CALLS[name]).frames


@cache
def calibrated(name: str) -> Stats:
    model, clock = model_of(name), StepClock(STEPS)
    with Observer(model.denoiser, clock, model.quantizable) as observer:
        sampled(name, model.denoiser, clock)
    return observer.stats(num_prompts=1, window=lambda fqn: model.window(fqn, SAMPLER))


@cache
def quantized_run(name: str, *overrides: str) -> QuantizedRun:
    """What stages=[export] makes of these settings."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = ["logger=csv", "alpha=half", "sampler=own_50"]
        own += [f"sampler.steps={STEPS}", f"sampler.guidance_scale={GUIDANCE}"]
        made = Experiment(compose("config", overrides=[*own, *overrides]))
    model = model_of(name)
    form = {"num_steps": STEPS, "quantizable": model.quantizable, "timesteps": model.timesteps(SAMPLER)}
    return QuantizedRun(
        name="tiny_0123456789",
        signature="0123456789",
        model=model,
        denoiser=model.denoiser,
        state=made.method.convert(model.denoiser, calibrated(name), **form, keep=made.keep),
        sampler=SAMPLER,
        backend=made.backend,
        config=made.config() | {"model": {"name": name}},
        prompt=PROMPT,
    )


def latents_of(name: str, run: QuantizedRun) -> Tensor:
    clock = StepClock(STEPS)
    return sampled(name, apply(run.denoiser, run.state, clock, run.backend), clock)


def psnr(found: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.abs().max() ** 2 / (found - expected).square().mean()))


def documented(title: str, folder: Path, name: str):
    """The pipeline that the code of this title in docs/export.md makes of a folder and a plain pipeline."""
    text = (CONF.parent / "docs" / "export.md").read_text()
    code = text.partition(f'```python title="{title}"\n')[2].partition("```")[0]
    scope: dict = {}
    exec(code.replace("FOLDER", str(folder)).replace("PIPELINE", str(pipeline_folder(name))), scope)
    return scope["pipeline"]
