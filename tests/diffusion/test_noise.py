"""PromptNoise: a prompt's stream depends on (seed, index) and on nothing else."""

import numpy as np
import pytest
import torch
from pytorch_lightning.plugins.precision import HalfPrecision
from scipy import stats

from vdq.diffusion.noise import PromptNoise

SHAPE = (4, 2, 4, 6)
STEP_SEEDS = [2539736653446039501, 7793186765717411392]  # printf 42/0/step | sha256sum | cut -c1-16, halved
INITIAL = [[-2.3282082, -1.1613699, 0.3517146], [-0.9329152, 1.2574019, 0.1798031]]


def draws(noise, count=3):
    return torch.stack([noise.initial(), *(noise.next() for _ in range(count))], dim=1)


def test_independent_of_batch_composition():
    together = draws(PromptNoise(42, [3, 0, 7], SHAPE))
    for row, index in enumerate([3, 0, 7]):
        assert torch.equal(draws(PromptNoise(42, [index], SHAPE))[0], together[row])
    assert torch.equal(draws(PromptNoise(42, [7, 3], SHAPE)), together[[2, 0]])


def test_independent_of_the_global_generator():
    torch.manual_seed(0)
    first = draws(PromptNoise(42, [1], SHAPE))
    torch.manual_seed(1)
    torch.randn(5)
    assert torch.equal(draws(PromptNoise(42, [1], SHAPE)), first)


def test_seeds_indices_and_draws_all_differ():
    values = torch.cat([draws(PromptNoise(seed, [0, 1, 10], SHAPE)).flatten(0, 1) for seed in (0, 1, 42)])
    correlation = np.corrcoef(values.flatten(1).numpy())
    assert np.abs(correlation - np.eye(len(values))).max() < 0.4


def test_initial_starts_the_streams_anew():
    noise = PromptNoise(42, [0, 1], SHAPE)
    assert torch.equal(draws(noise), draws(noise))


def test_initial_does_not_depend_on_earlier_draws():
    """So that the samplers with and without noise per step start from the same latents."""
    noise = PromptNoise(42, [0], SHAPE)
    first = noise.initial()
    noise.next()
    assert torch.equal(noise.initial(), first)


def test_standard_normal():
    values = draws(PromptNoise(7, range(20), SHAPE))
    assert values.dtype == torch.float32 and values.shape == (20, 4, *SHAPE)
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 0.01


def test_streams_are_fixed_for_ever():
    """Stored videos depend on these numbers: a change of the seeding breaks every comparison with them."""
    noise = PromptNoise(42, [0, 1], (3,))
    assert [generator.initial_seed() for generator in noise._steps] == STEP_SEEDS
    torch.testing.assert_close(noise.initial(), torch.tensor(INITIAL), atol=1e-6, rtol=0)


def test_no_prompts():
    with pytest.raises(ValueError, match="indices"):
        PromptNoise(42, [], SHAPE)


def test_noise_is_fp32_inside_a_half_precision_trainer():
    """Lightning's 16-true sets the default dtype while it predicts."""
    full = PromptNoise(1, [0], (4, 2, 2, 2)).initial()
    with HalfPrecision("16-true").predict_step_context():
        half = PromptNoise(1, [0], (4, 2, 2, 2)).initial()
    assert half.dtype == torch.float32 and torch.equal(full, half)


def test_another_purpose_is_other_noise():
    assert not torch.equal(PromptNoise(1, [0], (4,)).initial(), PromptNoise(1, [0], (4,), purpose="else ").initial())
