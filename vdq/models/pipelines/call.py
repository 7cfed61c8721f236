"""How a pipeline of diffusers is called: what the user sets, and what its signature says of the rest."""

from __future__ import annotations

import difflib
import inspect
from functools import cached_property
from typing import Any

from PIL import Image

from vdq.errors import UserError
from vdq.models.image_prompt import ImagePrompt
from vdq.models.pipelines.refused import FRAMES, is_configurable

SIZES = (*FRAMES, "height", "width")
LARGEST = 1 << 20
OURS = {  # arguments of a call that belong to other fields
    "prompt": "dataset",
    "image": "dataset",
    "num_inference_steps": "sampler.steps",
    "guidance_scale": "sampler.guidance_scale",
    "generator": "seed",
    "latents": "seed",
}
NOBODYS = ("_embeds", "_mask", "callback_on", "output_type", "return_dict", "num_videos_per", "num_images_per")
SIDE = 512  # pixels of an image that no video begins with, where nothing says another size


class PipelineCall:
    """The call of a pipeline of a class with the user's `arguments`, such as height, width and num_frames."""

    def __init__(self, kind: type, arguments: dict[str, Any]) -> None:
        self.kind, self.arguments = kind, arguments

    @cached_property
    def signature(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.kind.__call__).parameters)

    @property
    def takes_images(self) -> bool:
        return "image" in self.signature

    @property
    def encodes_pixels(self) -> bool:
        """Whether it needs its autoencoder for images, or for videos that a call may do without."""
        return bool({"image", "video"} & set(self.signature))

    def value(self, argument: str, otherwise: Any) -> Any:
        """What the user set, else the default in the signature, else `otherwise`."""
        found = self.signature.get(argument)
        default = None if found is None or found.default is found.empty else found.default
        return self.arguments.get(argument) or default or otherwise

    def check(self) -> None:
        """Raises UserError for an argument that the call does not have or that is not the user's to set."""
        allowed = self._allowed()
        for name, value in self.arguments.items():
            if name in OURS:
                raise UserError(f"model.call.{name} cannot be set there: {OURS[name]} says it")
            if name in self.signature and not is_configurable(self.signature[name]):
                raise UserError(f"model.call.{name} cannot be set: a configuration holds neither images nor tensors")
            if name not in allowed:
                near = difflib.get_close_matches(name, allowed, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(
                    f"model.call.{name} is no argument of {self.kind.__name__}; allowed: {', '.join(allowed)}{hint}"
                )
            if name in SIZES and (type(value) is not int or not 1 <= value <= LARGEST):
                raise UserError(f"model.call.{name}={value} must be an integer in 1..{LARGEST}")

    def inputs(self, prompts: list[str], *, one_prompt: bool = False) -> dict[str, Any]:
        """Arguments for prompts, and for their images; one_prompt: the call takes a text, not a list of them. Raises
        UserError for several prompts where it takes one.
        """
        if len(prompts) > 1 and (self.takes_images or one_prompt):
            whom = "videos of images" if self.takes_images else self.kind.__name__
            raise UserError(f"batch_size={len(prompts)} must be 1 for {whom}")
        if not self.takes_images:
            return {"prompt": str(prompts[0]) if one_prompt else list(map(str, prompts))}
        (prompt,) = prompts
        size = self.value("width", SIDE), self.value("height", SIDE)
        image = prompt.opened() if isinstance(prompt, ImagePrompt) else Image.new("RGB", size)
        return {"prompt": [str(prompt)], "image": image}

    def guidance(self, pipeline: Any, scale: float) -> dict[str, float]:
        """The argument that sets the strength of guidance; of a pipeline whose guidance is a component, that is set."""
        if "guidance_scale" in self.signature:
            return {"guidance_scale": scale}
        pipeline.register_modules(guider=pipeline.guider.new(guidance_scale=scale))
        return {}

    def _allowed(self) -> list[str]:
        """Arguments that the user may set."""
        others = {"self", "timesteps", "sigmas", *OURS}
        names = [name for name, argument in self.signature.items() if is_configurable(argument)]
        return [n for n in names if n not in others and not any(mark in n for mark in NOBODYS)]
