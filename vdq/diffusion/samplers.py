"""Step-synchronous samplers with classifier-free guidance, DDIM and ancestral IDDPM (spec/opensora.md section 6)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.guidance import Reusing, guided
from vdq.diffusion.observer import step_observers
from vdq.diffusion.schedule import Schedule
from vdq.errors import UserError
from vdq.models.base import Conditions

MOST_GUIDANCE = 1000


class Noise(Protocol):
    """Anything that draws like PromptNoise."""

    def initial(self) -> Tensor: ...

    def next(self) -> Tensor: ...


class Posterior(NamedTuple):
    """Estimate of the clean latents and the distribution of the next state, each [n, c, T, H, W] fp32."""

    pred_xstart: Tensor
    mean: Tensor
    log_variance: Tensor


class Sampler(ABC):
    """Denoises all prompts of a batch together, one step of all prompts at a time."""

    def __init__(self, *, steps: int = 20, guidance_scale: float = 7.0, guidance_channels: int = 3) -> None:
        if not 0 <= guidance_scale <= MOST_GUIDANCE:
            raise UserError(f"guidance_scale={guidance_scale} must be in 0..{MOST_GUIDANCE}; 1 is no guidance")
        if guidance_channels < 0:
            raise UserError(f"guidance_channels={guidance_channels} must be at least 0")
        self.schedule = Schedule(steps)
        self.guidance_scale = guidance_scale
        self.guidance_channels = guidance_channels

    @torch.no_grad()
    def sample(
        self,
        denoiser: nn.Module | Reusing,
        conditions: Conditions,
        noise: Noise,
        clock: StepClock,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Latents [n, c, T, H, W] fp32 on the device of `conditions`, where the denoiser must be too.

        `clock` is set before every call of the denoiser; `callback(step, latents)` is called after every step. The
        state is fp32 whatever the denoiser's dtype. `Reusing(denoiser)` gives the same latents in less time. The
        denoiser's `StepObserver`s are told the guided estimate of every step. Raises UserError when the clock counts
        other steps than the schedule.
        """
        steps = self.schedule.num_steps
        if clock.num_steps != steps:
            raise UserError(f"clock.num_steps={clock.num_steps} must equal the sampler's steps={steps}")
        observers = step_observers(denoiser)
        x = noise.initial().to(conditions.y.device, torch.float32)
        for step, timestep in enumerate(self.schedule.timesteps.tolist()):
            clock.set(step)
            eps, variance = guided(
                denoiser,
                x,
                timestep,
                conditions,
                guidance_scale=self.guidance_scale,
                guidance_channels=self.guidance_channels,
            )
            for observer in observers:
                observer.observe(step, eps.float())
            x = self.advance(step, x, eps.float(), variance.float(), noise)
            if callback is not None:
                callback(step, x)
        return x

    @abstractmethod
    def advance(self, step: int, x: Tensor, eps: Tensor, variance: Tensor, noise: Noise) -> Tensor:
        """State after `step` from the state x before it and the guided output of the denoiser, each [n, c, T, H, W]."""


class DDIMSampler(Sampler):
    """Deterministic: only the initial noise is drawn and the variance logits are not used."""

    def advance(self, step: int, x: Tensor, eps: Tensor, variance: Tensor, noise: Noise) -> Tensor:
        return ddim_step(self.schedule, step, x, eps)


class IDDPMSampler(Sampler):
    """Ancestral with learned variance: draws noise at every step, also at the last, which does not use it."""

    def advance(self, step: int, x: Tensor, eps: Tensor, variance: Tensor, noise: Noise) -> Tensor:
        draw = noise.next().to(x)
        posterior = iddpm_posterior(self.schedule, step, x, eps, variance)
        if step == self.schedule.num_steps - 1:
            return posterior.mean
        return posterior.mean + torch.exp(0.5 * posterior.log_variance) * draw


def predict_xstart(schedule: Schedule, step: int, x: Tensor, eps: Tensor) -> Tensor:
    """x0 = sqrt(1/abar) x - sqrt(1/abar - 1) eps, without clamping (Ho et al. 2020, eq. 15)."""
    return schedule.sqrt_recip_alphas_cumprod[step].item() * x - schedule.sqrt_recipm1_alphas_cumprod[step].item() * eps


def ddim_step(schedule: Schedule, step: int, x: Tensor, eps: Tensor) -> Tensor:
    """x_next = sqrt(abar_prev) x0 + sqrt(1 - abar_prev) eps (Song et al. 2021, eq. 12 with sigma 0)."""
    previous = schedule.alphas_cumprod_prev[step]
    return previous.sqrt().item() * predict_xstart(schedule, step, x, eps) + (1 - previous).sqrt().item() * eps


def iddpm_posterior(schedule: Schedule, step: int, x: Tensor, eps: Tensor, variance: Tensor) -> Posterior:
    """Distribution of the state after `step` (Ho et al. 2020, eq. 7), all tensors [n, c, T, H, W] fp32.

    The log variance lies between the posterior's and beta's (Nichol and Dhariwal 2021, eq. 15) at the fraction
    (variance logit + 1) / 2, which is not clamped.
    """
    pred_xstart = predict_xstart(schedule, step, x, eps)
    coef1, coef2 = schedule.posterior_mean_coef1[step].item(), schedule.posterior_mean_coef2[step].item()
    fraction = (variance + 1) / 2
    high, low = schedule.log_betas[step].item(), schedule.posterior_log_variance[step].item()
    return Posterior(pred_xstart, coef1 * pred_xstart + coef2 * x, fraction * high + (1 - fraction) * low)
