"""The noise schedule of Open-Sora 1.0 (IDDPM): linear betas, evenly respaced, and the steps along it."""

from typing import NamedTuple

import torch
from torch import Tensor

from vdq.errors import UserError


class Schedule:
    """Float64 CPU tables of a respaced linear schedule, indexed by step: 0 is the noisiest, num_steps-1 the last.

    timesteps [num_steps] long is what the model is given at each step. betas, log_betas, alphas_cumprod,
    alphas_cumprod_prev, sqrt_recip_alphas_cumprod, sqrt_recipm1_alphas_cumprod, posterior_variance,
    posterior_log_variance, posterior_mean_coef1 and posterior_mean_coef2 are [num_steps]. train_betas and
    train_alphas_cumprod are [num_train_timesteps], by timestep. Raises UserError when num_steps is not in
    1..num_train_timesteps or the betas are not increasing within 0..1.
    """

    def __init__(
        self,
        num_steps: int = 20,
        *,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        if not 1 <= num_steps <= num_train_timesteps:
            raise UserError(f"num_steps={num_steps} must be in 1..num_train_timesteps={num_train_timesteps}")
        if not 0 < beta_start <= beta_end < 1:
            raise UserError(f"beta_start={beta_start} and beta_end={beta_end} must satisfy 0 < start <= end < 1")
        self.num_steps = num_steps
        self.num_train_timesteps = num_train_timesteps
        self.train_betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
        self.train_alphas_cumprod = (1 - self.train_betas).cumprod(0)

        kept = torch.tensor(spaced_timesteps(num_steps, num_train_timesteps))
        cumprod = self.train_alphas_cumprod[kept]
        betas = 1 - cumprod / torch.cat([cumprod.new_ones(1), cumprod[:-1]])
        alphas_cumprod = (1 - betas).cumprod(0)
        previous = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        variance = betas * (1 - previous) / (1 - alphas_cumprod)

        self.timesteps = kept.flip(0)
        self.betas = betas.flip(0)
        self.log_betas = self.betas.log()
        self.alphas_cumprod = alphas_cumprod.flip(0)
        self.alphas_cumprod_prev = previous.flip(0)
        self.sqrt_recip_alphas_cumprod = (1 / self.alphas_cumprod).sqrt()
        self.sqrt_recipm1_alphas_cumprod = (1 / self.alphas_cumprod - 1).sqrt()
        self.posterior_variance = variance.flip(0)
        self.posterior_log_variance = _log_variance(variance, betas).flip(0)
        self.posterior_mean_coef1 = self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)

    def q_sample(self, x0: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Forward process at training timesteps: sqrt(abar_t) x0 + sqrt(1 - abar_t) noise (Ho et al. 2020, eq. 4).

        x0 and noise [B, ...] float; timestep [B] long in 0..num_train_timesteps-1 (an index error otherwise). Returns
        x0's dtype.
        """
        alphas_cumprod = self.train_alphas_cumprod[timestep.cpu()].view(-1, *[1] * (x0.dim() - 1))
        signal, sigma = alphas_cumprod.sqrt().to(x0), (1 - alphas_cumprod).sqrt().to(x0)
        return signal * x0 + sigma * noise


class Posterior(NamedTuple):
    """Estimate of the clean latents and the distribution of the next state, each [n, c, T, H, W] fp32."""

    pred_xstart: Tensor
    mean: Tensor
    log_variance: Tensor


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


def spaced_timesteps(num_steps: int, num_train_timesteps: int) -> list[int]:
    """Ascending timesteps from 0 to the last one, evenly spaced; the stride is summed in floating point as upstream."""
    stride = (num_train_timesteps - 1) / (num_steps - 1) if num_steps > 1 else 1.0
    position, kept = 0.0, []
    for _ in range(num_steps):
        kept.append(round(position))
        position += stride
    return kept


def _log_variance(variance: Tensor, betas: Tensor) -> Tensor:
    """Log of the posterior variance, ascending. The first is log 0: the second stands in, or beta if there is none."""
    first = variance[1:2] if len(variance) > 1 else betas
    return torch.cat([first, variance[1:]]).log()
