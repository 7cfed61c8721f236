"""The schedulers of diffusers' kind: their steps are the formulas, their interface is the ecosystem's."""

import pytest
import torch
from diffusers import DDPMScheduler

from vdq.diffusion.schedule import Schedule, ddim_step
from vdq.diffusion.schedulers import IDDPMScheduler, RespacedDDIMScheduler

SHAPE = (2, 4, 2, 4, 4)
X, OUTPUT = torch.randn(SHAPE), torch.randn(2, 8, 2, 4, 4)
BOTH = pytest.mark.parametrize("kind", [RespacedDDIMScheduler, IDDPMScheduler])


def of_steps(scheduler, steps: int):
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("num_steps", [5, 20])
def test_ancestral_steps_equal_those_of_diffusers(num_steps):
    """The same respaced timesteps, draws of the same generators, given to its scheduler with learned variance."""
    scheduler = of_steps(IDDPMScheduler(), num_steps)
    oracle = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type="learned_range", clip_sample=False)
    oracle.set_timesteps(timesteps=scheduler.timesteps.tolist())
    output = torch.cat([OUTPUT[:, :4], OUTPUT[:, 4:].tanh()], 1)
    for timestep in scheduler.timesteps:
        ours, theirs = (
            each.step(output, timestep, X, generator=[torch.Generator().manual_seed(s) for s in (1, 2)]).prev_sample
            for each in (scheduler, oracle)
        )
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_ddim_steps_do_not_read_the_variance():
    scheduler, schedule = of_steps(RespacedDDIMScheduler(), 4), Schedule(4)
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        (following,) = scheduler.step(OUTPUT, timestep, X, return_dict=False)
        assert torch.equal(following, ddim_step(schedule, step, X, OUTPUT[:, :4]))


@BOTH
def test_the_step_index_follows_the_steps(kind):
    scheduler = of_steps(kind(), 3)
    assert scheduler.step_index is None and len(scheduler) == 1000 and scheduler.scale_model_input(X, 999) is X
    for step, timestep in enumerate(scheduler.timesteps):
        scheduler.step(OUTPUT, timestep, X)
        assert scheduler.step_index == step + 1
    assert of_steps(scheduler, 2).step_index is None


@BOTH
def test_a_saved_configuration_makes_the_same_scheduler(kind, tmp_path):
    kind(beta_end=0.01).save_pretrained(tmp_path)
    loaded = of_steps(kind.from_pretrained(tmp_path), 4)
    assert torch.equal(loaded.schedule.betas, Schedule(4, beta_end=0.01).betas)
    assert loaded.timesteps.tolist() == Schedule(4).timesteps.tolist()


@BOTH
def test_a_timestep_of_another_schedule_is_refused(kind):
    with pytest.raises(ValueError, match="timestep=500 must be one of"):
        of_steps(kind(), 2).step(OUTPUT, 500, X)
    with pytest.raises(ValueError, match="must be one of the scheduler's timesteps, set by set_timesteps"):
        kind().step(OUTPUT, 999, X)
