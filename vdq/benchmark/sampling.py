"""The whole sampler of a model, one batch of prompts a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import Sampler

if TYPE_CHECKING:
    from vdq.models.base import EncodedPrompts, VideoModel


class Batches:
    """Encoded prompts in batches; decoding and encoding are not timed."""

    def __init__(
        self,
        conditions: Sequence[EncodedPrompts],
        *,
        model: VideoModel,
        sampler: Sampler,
        seed: int,
    ) -> None:
        self.conditions, self.model, self.sampler, self.seed = conditions, model, sampler, seed
        ends = torch.tensor([0, *map(len, conditions)]).cumsum(0).tolist()
        self.indices = [list(range(*pair)) for pair in zip(ends, ends[1:], strict=False)]

    def sampling(self, net: nn.Module, clock: StepClock) -> Callable[[int], Tensor]:
        """Samples the batch of a round with a denoiser."""

        def run(round_: int) -> Tensor:
            batch = round_ % len(self.conditions)
            noise = PromptNoise(self.seed, self.indices[batch], self.model.latent_shape)
            # A new one each time: the same captions again would otherwise cost nothing.
            return self.model.sample(self.model.reusing(net), self.conditions[batch], noise, clock, self.sampler)

        return run
