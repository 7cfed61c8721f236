"""Sampling: which prompts, which noise, what is written."""

import json

import pytest
import torch
from torch import nn

from vdq import machine
from vdq.backends import FakeQuantBackend
from vdq.data.read_video import read_video
from vdq.data.samples import read_sample
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler, IDDPMSampler
from vdq.methods import DynamicMethod
from vdq.quant import apply
from vdq.tasks.generation import Generation

PROMPTS = ["a red square", "a blue circle moves", "an amber star", "a cat"]
STEPS = 3


@pytest.fixture
def sample(model, trainer, tmp_path):
    def run(*indices: int, folder: str = "run", sampler: type = DDIMSampler, **settings: object):
        clock = StepClock(STEPS)
        task = Generation(
            **{"model": model, "denoiser": model.denoiser, "clock": clock, "sampler": sampler(steps=STEPS)}
            | {"prompts": PROMPTS, "indices": list(indices), "folder": tmp_path / folder}
            | settings
        )
        trainer.predict(task, return_predictions=False)
        return tmp_path / folder

    return run


def test_only_the_wanted_prompts_are_sampled(sample):
    folder = sample(3, 1)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0001.safetensors", "0003.safetensors"]
    assert sorted(path.name for path in (folder / "videos").iterdir()) == ["0001.mp4", "0003.mp4"]


def test_video_and_lossless_frames_are_the_decoded_latents(sample, model):
    folder = sample(2)
    found = read_sample(folder, 2)
    assert torch.equal(found["frames"], model.decode(found["latents"][None])[0])
    assert found["latents"].dtype == torch.float32 and found["frames"].dtype == torch.uint8
    assert read_video(folder / "videos" / "0002.mp4").shape == (2, 16, 16, 3)


class Silent(nn.Module):
    """Estimates no noise, so that DDIM only rescales the noise it started from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, timestep, y, mask):
        return torch.zeros_like(torch.cat([x, x], dim=1))


def test_noise_is_that_of_the_prompts_number(sample, model):
    """Oracle: x_next = sqrt(abar_prev / abar) x for an estimate of zero, so x_end = x_start / sqrt(abar_first)."""
    folder = sample(1, 3, denoiser=Silent(), seed=7)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scale = (1 / (1 - betas).prod()).sqrt().float()
    for index in (1, 3):
        start = PromptNoise(7, [index], model.latent_shape).initial()[0]
        torch.testing.assert_close(read_sample(folder, index)["latents"], start * scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [DDIMSampler, IDDPMSampler])
def test_batches_and_neighbours_change_nothing(sample, sampler):
    together = sample(0, 1, 2, 3, folder="together", sampler=sampler)
    alone = sample(2, folder="alone", sampler=sampler, batch_size=1)
    pairs = sample(3, 2, 1, 0, folder="pairs", sampler=sampler, batch_size=2)
    for folder in (alone, pairs):
        a, b = read_sample(folder, 2)["latents"], read_sample(together, 2)["latents"]
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    others = [read_sample(together, index)["latents"] for index in range(4)]
    assert all(not torch.allclose(others[2], other, rtol=0.1) for number, other in enumerate(others) if number != 2)


def test_seed_changes_every_video(sample):
    a, b = (read_sample(sample(0, folder=str(seed), seed=seed), 0)["latents"] for seed in (1, 2))
    assert not torch.allclose(a, b, rtol=0.1)


def quantized(model, clock: StepClock) -> nn.Module:
    state = DynamicMethod().convert(model.denoiser, None, num_steps=STEPS, quantizable=model.quantizable)
    return apply(model.denoiser, state, clock, FakeQuantBackend())


def test_record_of_what_ran(sample, model):
    clock = StepClock(STEPS)
    settings = {"clock": clock, "batch_size": 3, "arithmetic": "fake_quant (simulated)"}
    folder = sample(0, 1, 2, 3, denoiser=quantized(model, clock), **settings)
    ran = json.loads((folder / "sampling.json").read_text())
    assert (ran["quantized_layers"], ran["quantized_calls"]) == (
        13,
        (12 * STEPS + 1) * 2,
    )  # two batches, kv_linear once each
    assert (ran["arithmetic"], ran["dtype"], ran["device"]) == ("fake_quant (simulated)", "float32", "cpu")
    assert (ran["videos"], ran["of_videos"], ran["devices"]) == (4, 4, 1)
    found = machine.describe("cpu")
    assert {name: ran[name] for name in found} == found


def test_every_processor_of_an_interrupted_run_is_recorded(sample, monkeypatch):
    for index, name in enumerate(["B", "A", "B"]):
        monkeypatch.setattr(machine, "processor", lambda device, name=name: name)
        folder = sample(index)
    assert json.loads((folder / "sampling.json").read_text())["processor"] == "A and B"


def test_method_whose_layers_are_never_called_is_an_error(sample, model, tmp_path):
    clock = StepClock(STEPS)
    net = quantized(model, clock)
    net.forward = lambda x, *_: torch.cat([x, x], dim=1)
    with pytest.raises(ValueError, match="none of them was called"):
        sample(0, denoiser=net, clock=clock)
    assert not (tmp_path / "run" / "sampling.json").exists()
