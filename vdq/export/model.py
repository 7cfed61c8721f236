"""What both kinds of artefact load into: a denoiser with the sampler that it was quantized for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Noise, Sampler
from vdq.errors import UserError
from vdq.models.base import Callback, EncodedPrompts, VideoModel
from vdq.rebuild import rebuild


@dataclass(frozen=True, eq=False)
class ArtefactModel:
    """A quantized denoiser that reads `clock`, the sampler that it was made for, and the artefact's manifest.

    model: the video model around it, None for the one that the manifest describes.
    """

    denoiser: nn.Module
    sampler: Sampler
    clock: StepClock
    manifest: dict[str, Any]
    model: VideoModel | None = None

    @property
    def contents(self) -> dict[str, Any]:
        return self.manifest["contents"]

    @property
    def latent_shape(self) -> tuple[int, ...] | None:
        """(c, T, H, W), or None where the model draws its noise in a shape of its own."""
        shape = self.contents["latent_shape"]
        return shape and tuple(shape)

    def sample(self, conditions: EncodedPrompts, noise: Noise, callback: Callback | None = None) -> Tensor:
        """Latents [n, c, T, H, W] fp32 on the device of the denoiser; conditions as the video model encodes them."""
        denoiser = self._model.reusing(self.denoiser)
        return self._model.sample(denoiser, conditions, noise, self.clock, self.sampler, callback)

    def video_model(self, **changes: Any) -> VideoModel:
        """The model around this denoiser: its text encoder and its autoencoder are no part of the artefact and come
        from where the configuration says; `changes` are other arguments, such as `weights`. Raises UserError when they
        are not those of the run.
        """
        model = self.model or self._rebuilt(**changes)
        self.check_companions(model)
        return model

    @cached_property
    def _model(self) -> VideoModel:
        return self.model or self._rebuilt()

    def _rebuilt(self, **changes: Any) -> VideoModel:
        return rebuild(self.contents["config"]["model"] | changes, VideoModel, "model", net=self.denoiser)

    def check_companions(self, model: VideoModel) -> None:
        """Raises UserError unless the model encodes and decodes as the run's did."""
        for part, identity in self.contents["companions"].items():
            if model.companions.get(part) != identity:
                raise UserError(f"model: {part} {model.companions.get(part)} must be the artefact's, {identity}")
