"""Times the whole sampler of a model, one batch of prompts a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise

Sample = Callable[[nn.Module, Any, PromptNoise, StepClock], Tensor]


class Batches:
    """Encoded prompts in batches; decoding and encoding are not timed.

    sample(denoiser, conditions, noise, clock) -> latents; nothing may be kept from one of its calls for the next, since
    the same captions again would otherwise cost nothing.
    """

    def __init__(self, conditions: Sequence[Any], *, sample: Sample, latent_shape: tuple[int, ...], seed: int) -> None:
        self.conditions, self.sample, self.latent_shape, self.seed = conditions, sample, latent_shape, seed
        ends = torch.tensor([0, *map(len, conditions)]).cumsum(0).tolist()
        self.indices = [list(range(*pair)) for pair in zip(ends, ends[1:], strict=False)]

    def sampling(self, net: nn.Module, clock: StepClock) -> Callable[[int], Tensor]:
        """Samples the batch of a round with a denoiser."""

        def run(round_: int) -> Tensor:
            batch = round_ % len(self.conditions)
            noise = PromptNoise(self.seed, self.indices[batch], self.latent_shape)
            return self.sample(net, self.conditions[batch], noise, clock)

        return run
