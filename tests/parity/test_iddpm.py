"""Schedule, guidance and samplers against upstream's IDDPM, recorded with the stand-in network of the JSON."""

import re

import pytest
import torch

from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import DDIMSampler, IDDPMSampler
from vdq.diffusion.schedule import Schedule, iddpm_posterior, spaced_timesteps
from vdq.models.guidance import Conditions, guided
from vdq.models.stdit_model import sample_stdit

pytestmark = pytest.mark.golden("opensora", "iddpm")

TABLES = {  # name in the fixture -> attribute where they differ; the fixture's tables ascend, ours follow the steps
    "timestep_map": "timesteps",
    "posterior_log_variance_clipped": "posterior_log_variance",
    "betas_1000": "train_betas",
    "alphas_cumprod_1000": "train_alphas_cumprod",
}


class StandIn(torch.nn.Module):
    """The analytic network of iddpm.json: `stand_in` holds its formula and constants. Keeps what it was given."""

    def __init__(self, constants):
        super().__init__()
        self.constants = constants
        self.calls = []

    def forward(self, x, timestep, y, mask):
        a0, a1, a2, a3, a4, b0, b1, b2, b3 = (self.constants[name] for name in sorted(self.constants))
        tau = (timestep.float() / 1000).view(-1, 1, 1, 1, 1)
        s = y.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1, 1)
        eps = a0 * x + a1 * torch.tanh(x.roll(1, dims=1)) + a2 * torch.cos(a3 * tau) + a4 * s
        output = torch.cat([eps, torch.tanh(b0 * x + b1 * tau + b2 * s + b3)], dim=1)
        self.calls.append((x, timestep, output))
        return output


class Replay:
    """Recorded noise. Upstream draws 2n rows; the second half moves only the state that nobody reads."""

    def __init__(self, golden, rows=None):
        rows = rows or golden.config["n_prompts"]
        self.start, self.draws = golden.tensors["in.z"], iter(golden.tensors["in.noise"][:, :rows])

    def initial(self):
        return self.start

    def next(self):
        return next(self.draws)


@pytest.fixture
def network(golden):
    return StandIn(golden.config["stand_in"]["params"])


@pytest.fixture(scope="module")
def conditions(golden):
    return Conditions(golden.tensors["in.y_cond"], golden.tensors["in.y_null"])


@pytest.fixture(scope="module")
def schedule(golden):
    return Schedule(golden.config["num_sampling_steps"], num_train_timesteps=golden.config["diffusion_steps"])


def sampler_of(kind, golden):
    sampler = kind(steps=golden.config["num_sampling_steps"], guidance_scale=golden.config["cfg_scale"])
    assert sampler.schedule.num_train_timesteps == golden.config["diffusion_steps"]
    return sampler


def assert_close(actual, expected, golden):
    factor = float(re.search(r"<= *([\d.e+-]+)", golden.config["suggested_tolerance"]["latents"])[1])
    torch.testing.assert_close(actual, expected, atol=factor * expected.abs().max().item(), rtol=0)


def test_every_table(golden, schedule):
    rtol = golden.config["suggested_tolerance"]["float64_schedule"]["rtol"]
    tables = golden.under("sched.")
    assert tables
    for name, expected in tables.items():
        actual = getattr(schedule, TABLES.get(name, name))
        actual = actual if actual.shape[0] == golden.config["diffusion_steps"] else actual.flip(0)
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)


def test_timestep_maps_of_all_step_counts(golden):
    """The "ddimN" maps of the fixture belong to a spacing that the paper's samplers do not use."""
    maps = {int(steps): kept for steps, kept in golden.config["timestep_maps"].items() if steps.isdigit()}
    assert maps
    for steps, kept in maps.items():
        assert spaced_timesteps(steps, golden.config["diffusion_steps"]) == kept


def test_guided_output_of_every_step(golden, network, conditions, schedule):
    """Teacher-forced: model_in, t_model, model_raw and the guided result, for the half that is used."""
    count, recorded = golden.config["n_prompts"], golden.under("out.")
    for step in range(schedule.num_steps):
        assert recorded["t_index"][step] == schedule.num_steps - 1 - step
        x, timestep = recorded["latents"][step, :count], schedule.timesteps[step].item()
        eps, variance = guided(network, x, timestep, conditions, guidance_scale=golden.config["cfg_scale"])
        given, timesteps, raw = network.calls[-1]
        torch.testing.assert_close(given, recorded["model_in"][step], rtol=0, atol=0)
        assert torch.equal(timesteps, recorded["t_model"][step])
        assert_close(raw, recorded["model_raw"][step], golden)
        assert_close(torch.cat([eps, variance], dim=1), recorded["model_cfg"][step, :count], golden)


def test_posterior_and_next_state_of_every_step(golden, schedule):
    """All 2n rows: pred_xstart, mean, log_variance and the state after the step, from upstream's guided output."""
    recorded, scheduler = golden.under("out."), sampler_of(IDDPMSampler, golden).scheduler()
    scheduler.set_timesteps(schedule.num_steps)
    noise = Replay(golden, rows=recorded["latents"].shape[1])
    for step in range(schedule.num_steps):
        x = recorded["latents"][step]
        eps, variance = recorded["model_cfg"][step].chunk(2, dim=1)
        posterior = iddpm_posterior(schedule, step, x, eps, variance)
        for name, actual in posterior._asdict().items():
            assert_close(actual, recorded[name][step], golden)
        following = scheduler.step(
            recorded["model_cfg"][step], schedule.timesteps[step], x, variance_noise=noise.next()
        ).prev_sample
        assert_close(following, recorded["latents"][step + 1], golden)


@pytest.mark.parametrize(("kind", "name"), [(IDDPMSampler, "latents"), (DDIMSampler, "ddim_latents")])
def test_free_running_trajectory(golden, network, conditions, kind, name):
    count, expected = golden.config["n_prompts"], golden.tensors[f"out.{name}"]
    sampler, states = sampler_of(kind, golden), []
    clock = StepClock(sampler.schedule.num_steps)
    final = sample_stdit(network, conditions, Replay(golden), clock, sampler, lambda step, x: states.append(x))
    assert len(states) == len(expected) - 1
    for actual, state in zip(states, expected[1:], strict=True):
        assert_close(actual, state[:count], golden)
    assert torch.equal(final, states[-1])
    if name == "latents":
        assert_close(final, golden.tensors["out.final"], golden)
