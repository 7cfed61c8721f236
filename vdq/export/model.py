"""What both kinds of artefact load into: a denoiser with the sampler that it was quantized for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.guidance import Reusing
from vdq.diffusion.samplers import Noise, Sampler
from vdq.errors import UserError
from vdq.export.rebuild import rebuild
from vdq.models.base import Conditions, VideoModel


@dataclass(frozen=True, eq=False)
class ArtefactModel:
    """A quantized denoiser that reads `clock`, the sampler that it was made for, and the artefact's manifest."""

    denoiser: nn.Module
    sampler: Sampler
    clock: StepClock
    manifest: dict[str, Any]

    @property
    def contents(self) -> dict[str, Any]:
        return self.manifest["contents"]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.contents["latent_shape"])

    def sample(
        self, conditions: Conditions, noise: Noise, callback: Callable[[int, Tensor], None] | None = None
    ) -> Tensor:
        """Latents [n, c, T, H, W] fp32, on the device of `conditions`, where the denoiser must be too."""
        return self.sampler.sample(Reusing(self.denoiser), conditions, noise, self.clock, callback)

    def video_model(self, **changes: Any) -> VideoModel:
        """The model around this denoiser: its text encoder and its autoencoder are no part of the artefact and come
        from where the configuration says; `changes` are other arguments, such as `weights`. Raises UserError when they
        are not those of the run.
        """
        model = rebuild(self.contents["config"]["model"] | changes, VideoModel, "model", net=self.denoiser)
        self.check_companions(model)
        return model

    def check_companions(self, model: VideoModel) -> None:
        """Raises UserError unless the model encodes and decodes as the run's did."""
        for part, identity in self.contents["companions"].items():
            if model.companions.get(part) != identity:
                raise UserError(f"model: {part} {model.companions.get(part)} must be the artefact's, {identity}")
