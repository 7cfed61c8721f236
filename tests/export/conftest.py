"""A quantized run of every method on a denoiser so small that sampling it takes a moment."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.export.base import QuantizedRun
from vdq.models.guidance import Conditions
from vdq.models.stdit import STDiT
from vdq.models.stdit_model import STDiTModel
from vdq.quant import Observer, Stats, apply
from vdq.quant.recorded_inputs import RecordedInputs
from vdq.quant.search import InputRecorder
from vdq.stages.experiment import Experiment

CONF = Path(__file__).parents[2] / "conf"
METHODS = sorted(path.stem for path in (CONF / "quant").glob("*.yaml") if path.stem != "fp16")
LATENT = (4, 2, 4, 4)
STEPS = 4  # ten for the method of ten ranges


class TinyModel(STDiTModel):
    latent_shape, fps = LATENT, 4

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.denoiser = STDiT(
                input_size=LATENT[1:], hidden_size=24, depth=1, num_heads=2, caption_channels=8, model_max_length=6
            )
            for parameter in self.denoiser.parameters():
                nn.init.normal_(parameter, std=0.2)
        self.denoiser.eval().requires_grad_(False)

    def encode(self, prompts: list[str]) -> Conditions:
        y = torch.randn(len(prompts), 1, 6, 8, generator=torch.Generator().manual_seed(len(prompts)))
        return Conditions(y, torch.zeros(6, 8), torch.tensor([[1, 1, 1, 0, 0, 0]]).expand(len(prompts), -1))

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def pipeline_parts(self) -> dict:
        return {}

    @property
    def weights_sha256(self) -> str:
        return "0" * 64


MODEL = TinyModel()


@cache
def experiment(*overrides: str) -> Experiment:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Experiment(compose("config", overrides=["logger=csv", "alpha=half", *overrides]))


@cache
def calibrated(steps: int) -> Stats:
    plain, clock = experiment("quant=asq", f"sampler.steps={steps}"), StepClock(steps)
    recorder = InputRecorder(MODEL.denoiser, clock, MODEL.quantizable, range(steps))
    with Observer(MODEL.denoiser, clock, MODEL.quantizable) as observer, recorder:
        MODEL.sample(MODEL.denoiser, MODEL.encode(["a", "b"]), PromptNoise(1, [0, 1], LATENT), clock, plain.sampler)
    counted = torch.logspace(-2, 0, steps), torch.full((steps,), 0.1)
    recorded = RecordedInputs.of_steps(recorder.inputs, recorder.places, *counted, "")
    return observer.stats(num_prompts=2).with_inputs(recorded)


@cache
def quantized_run(*overrides: str) -> QuantizedRun:
    """What stages=[export] makes of these settings."""
    steps = 10 if "quant=tsq_10tr" in overrides else STEPS
    made = experiment(*overrides, f"sampler.steps={steps}")
    state = made.method.convert(
        MODEL.denoiser,
        calibrated(steps),
        num_steps=steps,
        quantizable=MODEL.quantizable,
        timesteps=MODEL.timesteps(made.sampler),
        keep=made.keep,
    )
    return QuantizedRun(
        name="tiny_0123456789",
        signature="0123456789",
        model=MODEL,
        denoiser=MODEL.denoiser,
        state=state,
        sampler=made.sampler,
        backend=made.backend,
        config=made.config(),
    )


def latents_of(run: QuantizedRun) -> Tensor:
    """What the run samples, from its full-precision weights."""
    clock = StepClock(run.state.num_steps)
    denoiser = apply(run.denoiser, run.state, clock, run.backend)
    return MODEL.sample(denoiser, MODEL.encode(["a", "b"]), PromptNoise(42, [0, 1], LATENT), clock, run.sampler)


@pytest.fixture(scope="session")
def make_run() -> Callable[..., QuantizedRun]:
    return quantized_run


@pytest.fixture(scope="session")
def expected_latents() -> Callable[[QuantizedRun], Tensor]:
    return latents_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method_name" in metafunc.fixturenames:
        metafunc.parametrize("method_name", METHODS)
