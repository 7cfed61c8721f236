"""What a user chooses of sampling: the number of steps, the strength of guidance and, where models leave it open, the
scheduler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from vdq.diffusion.schedule import Schedule
from vdq.errors import UserError

if TYPE_CHECKING:  # diffusers takes a second to import
    from vdq.diffusion.schedulers import RespacedScheduler

MOST_GUIDANCE = 1000
MOST_STEPS = 1000  # timesteps that models are trained on


class Noise(Protocol):
    """Anything that draws like PromptNoise."""

    def initial(self) -> Tensor: ...

    def next(self) -> Tensor: ...

    def generators(self) -> list[torch.Generator]: ...


class Sampler:
    """Steps and guidance for models that bring their own scheduler. Raises UserError for values out of range."""

    def __init__(self, *, steps: int = 20, guidance_scale: float = 7.0) -> None:
        if not 0 <= guidance_scale <= MOST_GUIDANCE:
            raise UserError(f"guidance_scale={guidance_scale} must be in 0..{MOST_GUIDANCE}; 1 is no guidance")
        if not 1 <= steps <= MOST_STEPS:
            raise UserError(f"steps={steps} must be in 1..{MOST_STEPS}")
        self.steps, self.guidance_scale = steps, guidance_scale


class RespacedSampler(Sampler):
    """A sampler on the schedule of Open-Sora 1.0, whose guidance reaches the first `guidance_channels` latent channels.

    Raises UserError for values out of range.
    """

    def __init__(self, *, steps: int = 20, guidance_scale: float = 7.0, guidance_channels: int = 3) -> None:
        self.schedule = Schedule(steps)  # which knows how many steps there can be
        super().__init__(steps=steps, guidance_scale=guidance_scale)
        if guidance_channels < 0:
            raise UserError(f"guidance_channels={guidance_channels} must be at least 0")
        self.guidance_channels = guidance_channels

    def scheduler(self) -> RespacedScheduler:
        """A new scheduler of diffusers' kind."""
        raise NotImplementedError


class DDIMSampler(RespacedSampler):
    """Deterministic: only the initial noise is drawn and the variance logits are not used."""

    def scheduler(self) -> RespacedScheduler:
        from vdq.diffusion.schedulers import RespacedDDIMScheduler

        return RespacedDDIMScheduler()


class IDDPMSampler(RespacedSampler):
    """Ancestral with learned variance: draws noise at every step, also at the last, which does not use it."""

    def scheduler(self) -> RespacedScheduler:
        from vdq.diffusion.schedulers import IDDPMScheduler

        return IDDPMScheduler()
