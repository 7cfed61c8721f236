"""The samplers of Open-Sora 1.0 as schedulers of diffusers' kind: DDIM and ancestral IDDPM on respaced steps."""

from __future__ import annotations

from abc import abstractmethod

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from vdq.diffusion.schedule import Schedule, ddim_step, iddpm_posterior


class RespacedScheduler(SchedulerMixin, ConfigMixin):
    """Steps on a linear schedule whose timesteps are evenly respaced (vdq.diffusion.schedule).

    A model output has the noise estimate in its first half of channels and the variance logits in the other. Its
    methods and attributes are those of diffusers' schedulers.
    """

    order = 1
    init_noise_sigma = 1.0
    draws_noise = False

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        self.num_inference_steps: int | None = None
        self.step_index: int | None = None
        self.timesteps = torch.arange(num_train_timesteps).flip(0)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Raises UserError when there are not so many timesteps."""
        config = self.config
        self.schedule = Schedule(
            num_inference_steps,
            num_train_timesteps=config.num_train_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
        )
        self.num_inference_steps = num_inference_steps
        self.timesteps = self.schedule.timesteps.to(device)
        self.step_index = None

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The state after the step of `timestep`: sample [n, c, ...] fp32, model_output [n, 2c, ...].

        `variance_noise`, of the sample's shape, takes the place of a draw from `generator`. Raises ValueError for a
        timestep that is none of the schedule's.
        """
        self.step_index = self._index(int(timestep))
        eps, variance = model_output.float().chunk(2, dim=1)
        if self.draws_noise and variance_noise is None:
            variance_noise = randn_tensor(sample.shape, generator=generator, device=sample.device)
        following = self.advance(self.step_index, sample, eps, variance, variance_noise)
        self.step_index += 1
        return SchedulerOutput(prev_sample=following) if return_dict else (following,)

    @abstractmethod
    def advance(self, step: int, x: Tensor, eps: Tensor, variance: Tensor, noise: Tensor | None) -> Tensor:
        """The state after step 0..N-1 from the state before it, the noise estimate and the variance logits."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process at training timesteps long [B] (Schedule.q_sample)."""
        return self.schedule.q_sample(original_samples, timesteps, noise)

    def _index(self, timestep: int) -> int:
        found = (self.timesteps == timestep).nonzero().flatten().tolist()
        if self.num_inference_steps is None or not found:
            raise ValueError(f"timestep={timestep} must be one of the scheduler's timesteps, set by set_timesteps")
        return found[0]

    def __len__(self) -> int:
        return self.config.num_train_timesteps


class RespacedDDIMScheduler(RespacedScheduler):
    """Deterministic steps with eta 0; the variance logits are not used."""

    def advance(self, step: int, x: Tensor, eps: Tensor, variance: Tensor, noise: Tensor | None) -> Tensor:
        return ddim_step(self.schedule, step, x, eps)


class IDDPMScheduler(RespacedScheduler):
    """Ancestral steps with learned variance; noise is drawn at every step, also at the last, which does not use it."""

    draws_noise = True

    def advance(self, step: int, x: Tensor, eps: Tensor, variance: Tensor, noise: Tensor | None) -> Tensor:
        posterior = iddpm_posterior(self.schedule, step, x, eps, variance)
        if step == self.schedule.num_steps - 1:
            return posterior.mean
        return posterior.mean + torch.exp(0.5 * posterior.log_variance) * noise
