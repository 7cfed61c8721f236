"""Times the whole sampler of a model, one batch of prompts a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.guidance import Reusing
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import Sampler
from vdq.models.base import Conditions


class Batches:
    """Encoded prompts in batches; decoding and encoding are not timed."""

    def __init__(
        self,
        conditions: Sequence[Conditions],
        *,
        sampler: Sampler,
        latent_shape: tuple[int, ...],
        seed: int,
        device: torch.device,
    ) -> None:
        self.conditions = [part.to(device) for part in conditions]
        self.sampler, self.latent_shape, self.seed = sampler, latent_shape, seed
        ends = torch.tensor([0, *map(len, conditions)]).cumsum(0).tolist()
        self.indices = [list(range(*pair)) for pair in zip(ends, ends[1:], strict=False)]

    def sampling(self, net: nn.Module, clock: StepClock) -> Callable[[int], Tensor]:
        """Samples the batch of a round with a denoiser."""

        def run(round_: int) -> Tensor:
            batch = round_ % len(self.conditions)
            noise = PromptNoise(self.seed, self.indices[batch], self.latent_shape)
            # A new one each time: the same captions again would otherwise cost nothing.
            return self.sampler.sample(Reusing(net), self.conditions[batch], noise, clock)

        return run
