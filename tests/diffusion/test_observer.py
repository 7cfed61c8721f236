"""Samplers tell parts of the denoiser the guided estimate, and nothing else."""

import pytest
import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.observer import StepObserver, step_observers
from vdq.diffusion.samplers import DDIMSampler, IDDPMSampler
from vdq.models.guidance import Conditions, Reusing
from vdq.models.stdit_model import sample_stdit

STEPS = 3


class Recorder(StepObserver):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, Tensor]] = []

    def observe(self, step: int, estimate: Tensor) -> None:
        self.seen.append((step, estimate))

    def records(self) -> list[dict]:
        return []


class Net(nn.Module):
    """Halves of a guided call differ by 1; two layers share the observer."""

    def __init__(self) -> None:
        super().__init__()
        recorder = Recorder()
        self.first, self.second = (nn.ModuleDict({"observer": recorder}) for _ in range(2))

    def forward(self, x, timestep, y, mask) -> Tensor:
        n = len(x) // 2
        half = torch.arange(2.0).repeat_interleave(n).view(-1, 1, 1, 1, 1)
        return torch.cat([x * 0.1 + half, torch.zeros_like(x)], 1)


@pytest.mark.parametrize("wrap", [lambda net: net, Reusing])
@pytest.mark.parametrize("kind", [DDIMSampler, IDDPMSampler])
def test_observers_are_told_the_guided_estimate_of_every_step(kind, wrap):
    net, states = Net(), []
    (observer,) = step_observers(net)
    noise = PromptNoise(0, [0, 1], (4, 2, 4, 4))
    sampler = kind(steps=STEPS, guidance_scale=7.0, guidance_channels=3)
    conditions = Conditions(torch.zeros(2, 1, 5, 8), torch.zeros(5, 8))
    sample_stdit(wrap(net), conditions, noise, StepClock(STEPS), sampler, lambda _, x: states.append(x))
    assert [step for step, _ in observer.seen] == [0, 1, 2]
    for (_, estimate), x in zip(observer.seen, [noise.initial(), *states], strict=False):
        expected = 0.1 * x  # caption half: + 0, null half: + 1, so guided: 1 + 7 * (0 - 1) = -6
        expected[:, :3] -= 6
        torch.testing.assert_close(estimate, expected)


def test_a_denoiser_may_have_none():
    assert step_observers(nn.Linear(2, 2)) == []
