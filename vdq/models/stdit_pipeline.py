"""STDiT as a pipeline of the diffusers ecosystem: `from_pretrained`, `save_pretrained` and a call with prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from vdq.diffusion.schedulers import RespacedScheduler
from vdq.models.captions import clean
from vdq.models.frames import to_uint8
from vdq.models.guidance import Conditions, Reusing, guided
from vdq.models.stdit import STDiT

TENSORS = ("latents", "noise_pred")


class STDiTTransformer(ModelMixin, STDiT, ConfigMixin):
    """STDiT that diffusers can save and load; its arguments are STDiT's."""

    @register_to_config
    def __init__(
        self,
        *,
        input_size: Sequence[int] = (16, 64, 64),
        in_channels: int = 4,
        patch_size: Sequence[int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        caption_channels: int = 4096,
        model_max_length: int = 120,
        space_scale: float = 1.0,
        time_scale: float = 1.0,
    ) -> None:
        STDiT.__init__(  # ModelMixin's own would build STDiT with its defaults first
            self,
            input_size=tuple(input_size),
            in_channels=in_channels,
            patch_size=tuple(patch_size),
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            caption_channels=caption_channels,
            model_max_length=model_max_length,
            space_scale=space_scale,
            time_scale=time_scale,
        )

    @classmethod
    def of(cls, net: STDiT) -> STDiTTransformer:
        """This class around a network and its tensors: nothing is copied."""
        with torch.device("meta"):
            found = cls(**net.dimensions)
        found.load_state_dict(net.state_dict(), assign=True)
        return found.eval().requires_grad_(False)


@dataclass
class STDiTPipelineOutput(BaseOutput):
    """frames: videos fp32 [n, T, H, W, 3] in 0..1, or latents fp32 [n, c, T, H, W] with output_type="latent"."""

    frames: np.ndarray | Tensor


class STDiTPipeline(DiffusionPipeline):
    """Text to video with STDiT, a T5 encoder and a frame autoencoder.

    A component that a call does not use may be None: text encoder and tokenizer if embeddings are given, the
    autoencoder if latents are asked for. scaling_factor: of the latents. max_length: tokens of a prompt.
    clean_captions: prompts are cleaned as those of Open-Sora's training were (vdq.models.captions).
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = list(TENSORS)

    def __init__(
        self,
        transformer: STDiT | Reusing,
        scheduler: RespacedScheduler,
        vae: AutoencoderKL | None = None,
        text_encoder: T5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        scaling_factor: float = 0.18215,
        max_length: int = 120,
        clean_captions: bool = True,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(scaling_factor=scaling_factor, max_length=max_length, clean_captions=clean_captions)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.0,
        guidance_channels: int = 3,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        step_noise: Callable[[], Tensor] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> STDiTPipelineOutput | tuple[np.ndarray | Tensor]:
        """Videos of prompts, or of their embeddings.

        prompt_embeds [n, 1, L, D] with prompt_attention_mask [n, L] or None, and negative_prompt_embeds [L, D], the
        null caption, which is the transformer's own if not given, take the place of `prompt`. guidance_channels: the
        first so many latent channels are guided. latents [n, c, T, H, W]: the initial noise; step_noise: called for the
        noise of each step that draws any; `generator` draws what is not given. The callback gets the tensors that are
        named: "latents" after the step, and "noise_pred", its guided estimate. output_type: "np" or "latent". Raises
        ValueError for another one, and unless there is either a prompt or its embeddings.
        """
        if output_type not in ("np", "latent"):
            raise ValueError(f"output_type={output_type} must be np or latent")
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("either prompt or prompt_embeds must be given")
        if prompt is not None:
            prompt_embeds, prompt_attention_mask = self.encode_prompt([prompt] if isinstance(prompt, str) else prompt)
        if negative_prompt_embeds is None:
            negative_prompt_embeds = self.transformer.null_caption
        conditions = Conditions(prompt_embeds, negative_prompt_embeds, prompt_attention_mask)
        device = prompt_embeds.device
        self.scheduler.set_timesteps(num_inference_steps)
        if latents is None:
            shape = (len(conditions), self.transformer.in_channels, *self.transformer.input_size)
            latents = randn_tensor(shape, generator=generator, device=device)
        latents = latents.to(device, torch.float32)
        for step, timestep in enumerate(self.scheduler.timesteps.tolist()):
            noise_pred, variance = guided(
                self.transformer,
                latents,
                timestep,
                conditions,
                guidance_scale=guidance_scale,
                guidance_channels=guidance_channels,
            )
            noise_pred = noise_pred.float()
            drawn = step_noise().to(latents) if step_noise is not None and self.scheduler.draws_noise else None
            output = torch.cat([noise_pred, variance.float()], dim=1)
            latents = self.scheduler.step(output, timestep, latents, generator, drawn, return_dict=False)[0]
            if callback_on_step_end is not None:
                tensors = {"latents": latents, "noise_pred": noise_pred}
                asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                latents = callback_on_step_end(self, step, timestep, asked).get("latents", latents)
        frames = latents if output_type == "latent" else self.decode_latents(latents).numpy() / np.float32(255)
        return STDiTPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.inference_mode()
    def encode_prompt(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Features [n, 1, L, D] and mask [n, L] of n prompts, padded to max_length tokens."""
        texts = [clean(prompt) for prompt in prompts] if self.config.clean_captions else prompts
        tokens = self.tokenizer(
            texts, max_length=self.config.max_length, padding="max_length", truncation=True, return_tensors="pt"
        ).to(self.text_encoder.device)
        y = self.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return y[:, None], tokens.attention_mask

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents [n, c, T, h, w] to uint8 [n, T, H, W, 3]."""
        return decode_latents(self.vae, latents, scaling_factor=self.config.scaling_factor)


@torch.inference_mode()
def decode_latents(
    vae: AutoencoderKL, latents: Tensor, *, scaling_factor: float, frames_at_once: int | None = None
) -> Tensor:
    """Latents [n, c, T, h, w] to uint8 [n, T, H, W, 3] on the CPU, frame by frame, rounded in fp32.

    The frames of one video go together, at most `frames_at_once` of them, so that their rounding does not depend on
    what else is in the batch.
    """
    videos = (latents / scaling_factor).transpose(1, 2).to(vae.dtype)
    parts = [part for frames in videos for part in frames.split(frames_at_once or len(frames))]
    decoded = torch.cat([vae.decode(part).sample.float().cpu() for part in parts])
    return to_uint8(decoded.unflatten(0, (len(latents), -1)).transpose(1, 2))
