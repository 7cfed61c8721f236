"""Schedule against exact fractions and the schedulers of diffusers."""

from fractions import Fraction

import pytest
import torch
from diffusers import DDPMScheduler

from vdq.diffusion.schedule import Schedule, spaced_timesteps


@pytest.mark.parametrize("num_steps", [1, 2, 7, 20, 50])
def test_respaced_signal_equals_the_exact_product(num_steps):
    """abar of a kept timestep is the product of (1 - beta) up to it, however many steps were left out."""
    schedule = Schedule(num_steps, num_train_timesteps=50, beta_start=1e-3, beta_end=0.1)
    start, end = Fraction("0.001"), Fraction("0.1")
    product, exact = Fraction(1), []
    for timestep in range(50):
        product *= 1 - (start + (end - start) * Fraction(timestep, 49))
        exact.append(float(product))
    expected = torch.tensor([exact[timestep] for timestep in schedule.timesteps.tolist()], dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod, expected, rtol=1e-12, atol=0)


def test_steps_descend_from_the_last_timestep_to_zero():
    schedule = Schedule(20)
    assert schedule.timesteps.dtype == torch.long
    assert schedule.timesteps[0] == 999 and schedule.timesteps[-1] == 0
    assert (schedule.timesteps.diff() < 0).all()
    assert schedule.alphas_cumprod_prev[-1] == 1
    assert torch.equal(schedule.alphas_cumprod_prev[:-1], schedule.alphas_cumprod[1:])


def test_all_steps_are_the_training_schedule():
    schedule = Schedule(1000)
    assert schedule.timesteps.tolist() == list(range(999, -1, -1))
    torch.testing.assert_close(schedule.betas.flip(0), schedule.train_betas, rtol=1e-9, atol=0)


def test_q_sample_equals_diffusers():
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 3, 2, 2, generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 17, 500, 999])
    oracle = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    expected = oracle.add_noise(x0, noise, timesteps)
    actual = Schedule().q_sample(x0, timesteps, noise)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_single_step_has_finite_tables():
    schedule = Schedule(1)
    assert spaced_timesteps(1, 1000) == [0]
    assert schedule.posterior_log_variance.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 1001}, "num_steps=1001"),
        ({"beta_start": 0.0}, "beta_start=0.0"),
        ({"beta_end": 1.0}, "beta_end=1.0"),
        ({"beta_start": 0.5}, "beta_start=0.5"),
    ],
)
def test_rejected_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)
