"""The part of the contract that all models around STDiT have in common: schedule, guidance, sampling."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.observer import StepObserver, step_observers
from vdq.diffusion.samplers import Noise, RespacedSampler, Sampler
from vdq.errors import UserError
from vdq.models.base import Callback, VideoModel
from vdq.models.driver import clock_follows
from vdq.models.guidance import Conditions, Reusing
from vdq.models.stdit import STDiT
from vdq.models.stdit_family import STDIT

if TYPE_CHECKING:
    from vdq.models.stdit_pipeline import STDiTPipeline


class STDiTModel(VideoModel):
    """A video model whose denoiser is an STDiT and whose conditions are `vdq.models.guidance.Conditions`."""

    family = STDIT

    @property
    def architecture(self) -> dict[str, Any]:
        return {"_target_": f"{STDiT.__module__}.{STDiT.__qualname__}", **self.structure.dimensions}

    def check(self, sampler: Sampler) -> None:
        if not isinstance(sampler, RespacedSampler):
            raise UserError(f"sampler={type(sampler).__name__} must be ddim or iddpm, on which STDiT was trained")
        if not 0 <= sampler.guidance_channels <= self.latent_shape[0]:
            raise UserError(
                f"sampler.guidance_channels={sampler.guidance_channels} must be in 0..{self.latent_shape[0]}, the "
                "channels of the latents"
            )

    def timesteps(self, sampler: RespacedSampler) -> Tensor:
        return sampler.schedule.timesteps.float()

    @abstractmethod
    def pipeline_parts(self) -> dict[str, Any]:
        """Arguments of STDiTPipeline beside the transformer and the scheduler. Large parts are read for it."""

    def pipeline(self, sampler: RespacedSampler) -> STDiTPipeline:
        """The whole model as a pipeline of the diffusers ecosystem, with the same tensors: to be called with prompts,
        or saved and loaded by `save_pretrained` and `from_pretrained`.
        """
        from vdq.models.stdit_pipeline import STDiTPipeline, STDiTTransformer

        return STDiTPipeline(STDiTTransformer.of(self.denoiser), sampler.scheduler(), **self.pipeline_parts())

    def reusing(self, denoiser: nn.Module) -> Reusing:
        return Reusing(denoiser)

    def sample(
        self,
        denoiser: nn.Module | Reusing,
        conditions: Conditions,
        noise: Noise,
        clock: StepClock,
        sampler: RespacedSampler,
        callback: Callback | None = None,
        observers: Sequence[StepObserver] = (),
    ) -> Tensor:
        return sample_stdit(denoiser, conditions, noise, clock, sampler, callback, observers)


def sample_stdit(
    denoiser: nn.Module | Reusing,
    conditions: Conditions,
    noise: Noise,
    clock: StepClock,
    sampler: RespacedSampler,
    callback: Callback | None = None,
    observers: Sequence[StepObserver] = (),
) -> Tensor:
    """What VideoModel.sample says, with any module that is called as an STDiT is."""
    from vdq.models.stdit_pipeline import STDiTPipeline  # diffusers takes seconds to import

    if clock.num_steps != sampler.steps:
        raise UserError(f"clock.num_steps={clock.num_steps} must equal the sampler's steps={sampler.steps}")
    net = denoiser.denoiser if isinstance(denoiser, Reusing) else denoiser
    watching = [*step_observers(net), *observers]
    pipeline = STDiTPipeline(denoiser, sampler.scheduler())

    def on_step_end(_: STDiTPipeline, step: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for observer in watching:
            observer.observe(step, tensors["noise_pred"])
        if callback is not None:
            callback(step, tensors["latents"])
        return {}

    conditions = conditions.to(_device_of(net, conditions))
    with clock_follows(clock, net, pipeline.scheduler):
        return pipeline(
            prompt_embeds=conditions.y,
            negative_prompt_embeds=conditions.null,
            prompt_attention_mask=conditions.mask,
            latents=noise.initial(),
            step_noise=noise.next,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            guidance_channels=sampler.guidance_channels,
            output_type="latent",
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=("latents", "noise_pred"),
        ).frames


def _device_of(net: nn.Module, conditions: Conditions) -> torch.device:
    tensors = (*net.parameters(), *net.buffers())
    return next((tensor.device for tensor in tensors), conditions.y.device)
