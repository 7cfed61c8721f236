"""Guided sampling with a real STDiT against upstream's trajectories, teacher-forced and free-running."""

import re

import pytest
import torch

from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import DDIMSampler, IDDPMSampler
from vdq.models.guidance import Conditions, guided
from vdq.models.stdit import STDiT
from vdq.models.stdit_model import sample_stdit

pytestmark = pytest.mark.golden("opensora", "stdit_cfg_traj")

SAMPLERS = [(IDDPMSampler, "out.latents"), (DDIMSampler, "out.ddim_latents_cond")]


class Replay:
    """Recorded noise of the used half; starts at any step."""

    def __init__(self, golden, step=0):
        count = golden.config["n_prompts"]
        self.start, self.draws = golden.tensors["in.z"], iter(golden.tensors["in.noise"][step:, :count])

    def initial(self):
        return self.start

    def next(self):
        return next(self.draws)


class Recorder(torch.nn.Module):
    """Passes on to the model and keeps the timesteps that it was given."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.timesteps = []

    def forward(self, x, timestep, y, mask):
        self.timesteps.append(timestep)
        return self.model(x, timestep, y, mask)


@pytest.fixture(scope="module")
def weights(golden):
    return golden.beside(re.search(r"(\S+)\.safetensors", golden.config["weights"])[1]).under("sd.")


@pytest.fixture(scope="module")
def model(golden, weights):
    model = STDiT(**golden.config["config"])
    model.load_state_dict(weights)
    return model


@pytest.fixture(scope="module")
def conditions(golden, weights):
    null = weights[golden.config["y_null"].removeprefix("sd.")]
    return Conditions(golden.tensors["in.y_cond"], null, golden.tensors["in.mask"])


def tolerance(golden, name):
    return float(re.search(r"<= *([\d.e+-]+)", golden.config["suggested_tolerance"][name])[1])


def sampler_of(kind, golden):
    return kind(steps=golden.config["num_sampling_steps"], guidance_scale=golden.config["cfg_scale"])


def absmax(golden, step, expected):
    """Scale of the error bound: recorded for the ancestral states, computed for the DDIM ones."""
    ancestral = expected is golden.tensors["out.latents"]
    count = golden.config["n_prompts"]
    return golden.config["per_step_absmax"][step] if ancestral else expected[step + 1, :count].abs().max().item()


@torch.no_grad()
def test_network_output_and_timesteps_of_every_step(golden, model, conditions):
    """t_model and model_raw, the state taken from the recording."""
    count, recorder = golden.config["n_prompts"], Recorder(model)
    y = torch.cat([conditions.y, conditions.null.expand_as(conditions.y)])
    for step, timestep in enumerate(sampler_of(IDDPMSampler, golden).schedule.timesteps.tolist()):
        x = golden.tensors["out.latents"][step, :count]
        guided(recorder, x, timestep, conditions)
        assert torch.equal(recorder.timesteps[-1], golden.tensors["out.t_model"][step])
        expected = golden.tensors["out.model_raw"][step]
        atol = tolerance(golden, "teacher_forced") * expected.abs().max().item()
        raw = model(torch.cat([x, x]), recorder.timesteps[-1], y, conditions.mask)
        torch.testing.assert_close(raw, expected, atol=atol, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), SAMPLERS)
def test_teacher_forced(golden, model, conditions, kind, name):
    count, expected, sampler = golden.config["n_prompts"], golden.tensors[name], sampler_of(kind, golden)
    scheduler = sampler.scheduler()
    scheduler.set_timesteps(sampler.steps)
    for step, timestep in enumerate(sampler.schedule.timesteps.tolist()):
        x = expected[step, :count]
        eps, variance = guided(model, x, timestep, conditions, guidance_scale=sampler.guidance_scale)
        output = torch.cat([eps, variance], dim=1)
        actual = scheduler.step(output, timestep, x, variance_noise=Replay(golden, step).next()).prev_sample
        atol = tolerance(golden, "teacher_forced") * absmax(golden, step, expected)
        torch.testing.assert_close(actual, expected[step + 1, :count], atol=atol, rtol=0)


@pytest.mark.parametrize(("kind", "name"), SAMPLERS)
def test_free_running(golden, model, conditions, kind, name):
    count, expected, sampler = golden.config["n_prompts"], golden.tensors[name], sampler_of(kind, golden)
    states = [golden.tensors["in.z"]]
    clock = StepClock(sampler.schedule.num_steps)
    final = sample_stdit(model, conditions, Replay(golden), clock, sampler, lambda step, x: states.append(x))
    assert len(states) == len(expected)
    for step, state in enumerate(states[1:]):
        atol = tolerance(golden, "free_running") * absmax(golden, step, expected)
        torch.testing.assert_close(state, expected[step + 1, :count], atol=atol, rtol=0)
    if name == "out.latents":
        torch.testing.assert_close(final, golden.tensors["out.final"], atol=atol, rtol=0)
