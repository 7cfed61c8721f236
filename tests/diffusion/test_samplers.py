"""Samplers against diffusers and closed forms; clock, noise, dtype and batch independence."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler, IDDPMSampler
from vdq.diffusion.schedule import Schedule, ddim_step, iddpm_posterior
from vdq.models.guidance import Conditions
from vdq.models.stdit import STDiT
from vdq.models.stdit_model import sample_stdit

LATENT = (4, 2, 4, 4)
BOTH = pytest.mark.parametrize("kind", [DDIMSampler, IDDPMSampler])


class Denoiser(nn.Module):
    """Element-wise, so that rows cannot influence each other; keeps the clock's readings."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.readings = []

    def forward(self, x, timestep, y, mask):
        self.readings.append(self.clock.index.item())
        shift = y.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1, 1)
        return torch.cat([torch.tanh(x + shift), torch.sin(x) - shift], dim=1)


class CountedNoise(PromptNoise):
    """Counts the draws per step."""

    draws = 0

    def next(self):
        self.draws += 1
        return super().next()


def conditions(count):
    generator = torch.Generator().manual_seed(3)
    y, null = torch.randn(count, 1, 5, 6, generator=generator), torch.randn(5, 6, generator=generator)
    return Conditions(y, null, (torch.arange(5) <= torch.arange(count)[:, None]).long())


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("num_steps", [5, 20])
def test_iddpm_step_equals_diffusers(num_steps):
    """The same respaced timesteps given to DDPMScheduler with learned_range variance, every step."""
    schedule = Schedule(num_steps)
    oracle = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type="learned_range", clip_sample=False)
    oracle.set_timesteps(timesteps=schedule.timesteps.tolist())
    x, eps, variance = randn(2, *LATENT), randn(3, *LATENT)[:2], randn(4, *LATENT)[:2].tanh()
    for step, timestep in enumerate(schedule.timesteps.tolist()):
        posterior = iddpm_posterior(schedule, step, x, eps, variance)
        output = torch.cat([eps, variance], dim=1)
        expected = oracle.step(output, timestep, x, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(posterior.pred_xstart, expected.pred_original_sample, atol=2e-3, rtol=1e-4)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(step)) * (timestep > 0)
        actual = posterior.mean + torch.exp(0.5 * posterior.log_variance) * noise
        torch.testing.assert_close(actual, expected.prev_sample, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 3, 20])
def test_ddim_follows_the_exact_path_of_a_known_noise(num_steps):
    """With the true eps every state is sqrt(abar) x0 + sqrt(1 - abar) eps and the last is x0, for any step count."""
    schedule, x0, eps = Schedule(num_steps), randn(2, *LATENT), randn(3, *LATENT)[:2]
    x = schedule.q_sample(x0, schedule.timesteps[:1].expand(2), eps)
    for step, following in enumerate(schedule.timesteps[1:]):
        x = ddim_step(schedule, step, x, eps)
        torch.testing.assert_close(x, schedule.q_sample(x0, following.expand(2), eps), atol=1e-4, rtol=0)
    torch.testing.assert_close(ddim_step(schedule, num_steps - 1, x, eps), x0, atol=1e-3, rtol=0)


@BOTH
def test_video_does_not_depend_on_its_batch(kind):
    clock, everyone = StepClock(6), conditions(3)
    sampler = kind(steps=6)
    together = sample_stdit(Denoiser(clock), everyone, PromptNoise(42, range(3), LATENT), clock, sampler)
    for row in range(3):
        noise = PromptNoise(42, [row], LATENT)
        alone = sample_stdit(Denoiser(clock), everyone[row : row + 1], noise, clock, sampler)
        assert torch.equal(alone[0], together[row])


@BOTH
def test_video_does_not_depend_on_its_batch_with_the_network(kind):
    """Prompts of different lengths, so packing and mask tiling are part of it; matmuls may round differently."""
    torch.manual_seed(0)
    network = STDiT(input_size=LATENT[1:], hidden_size=32, depth=1, num_heads=4, caption_channels=6, model_max_length=5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    clock, everyone, sampler = StepClock(4), conditions(3), kind(steps=4)
    together = sample_stdit(network, everyone, PromptNoise(42, range(3), LATENT), clock, sampler)
    for row in range(3):
        alone = sample_stdit(network, everyone[row : row + 1], PromptNoise(42, [row], LATENT), clock, sampler)
        torch.testing.assert_close(alone[0], together[row], atol=1e-4 * together.abs().max().item(), rtol=0)


@BOTH
def test_clock_is_set_before_the_denoiser_runs(kind):
    clock, states = StepClock(5), {}
    denoiser, noise = Denoiser(clock), CountedNoise(0, [0, 1], LATENT)
    final = sample_stdit(denoiser, conditions(2), noise, clock, kind(steps=5), lambda step, x: states.update({step: x}))
    assert denoiser.readings == list(states) == [0, 1, 2, 3, 4]
    assert states[4] is final and not final.requires_grad
    assert noise.draws == (5 if kind is IDDPMSampler else 0)


@BOTH
def test_state_is_float32_for_a_bfloat16_network(kind):
    network = STDiT(input_size=LATENT[1:], hidden_size=32, depth=1, num_heads=4, caption_channels=6, model_max_length=5)
    states, clock = [], StepClock(3)
    sample_stdit(
        network.to(torch.bfloat16),
        conditions(1).to("cpu", torch.bfloat16),
        PromptNoise(0, [0], LATENT),
        clock,
        kind(steps=3),
        lambda step, x: states.append(x.dtype),
    )
    assert states == [torch.float32] * 3


def test_clock_of_another_step_count():
    with pytest.raises(ValueError, match="clock.num_steps=10 must equal the sampler's steps=20"):
        sample_stdit(Denoiser(StepClock(10)), conditions(1), PromptNoise(0, [0], LATENT), StepClock(10), DDIMSampler())
