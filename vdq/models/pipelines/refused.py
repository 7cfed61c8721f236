"""Which pipelines of diffusers cannot be driven step by step, by what their calls ask for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable

from vdq.models.pipelines.published import DENOISERS

FRAMES = ("num_frames", "video_length", "frames")  # arguments by which a pipeline of videos is known
GIVEN = ("self", "prompt", "image")  # arguments without a default that a call gets
FOLLOWED = ("video", "control_video", "mask_video", "c2w")  # arguments for videos and paths that are followed
PIECES = ("chunk", "window", "tile", "segment")  # in arguments of pipelines that make a video piece by piece
SOUND = ("audio", "sound")
CONFIGURABLE = r"\b(str|int|float|bool|dict|Dict|Any)\b"  # in annotations, which name images and tensors otherwise
UNDRIVEN = {"MotifVideoImage2VideoPipeline": "which shows its text encoder the image while it samples"}


def refusal(kind: type, components: Iterable[str]) -> str | None:
    """Why a pipeline of that class with these components cannot be a video model, to be read after the name of the
    class; None if nothing speaks against it.
    """
    if kind.__name__ in UNDRIVEN:
        return f"{UNDRIVEN[kind.__name__]}: encoders are gone by then"
    components = tuple(components)
    arguments = inspect.signature(kind.__call__).parameters
    if not set(DENOISERS) & set(components):
        return "without a transformer: it has no linears of blocks to quantize"
    if _any(SOUND, (*components, *arguments)):
        return "which makes sound as well: only videos are supported"
    if needed := _other_inputs(arguments):
        return f"whose call needs {' and '.join(needed)}: it gets prompts and images only"
    if not set(FRAMES) & set(arguments):
        return "which makes no videos: its call has no number of frames"
    if "ar_step" in arguments:
        return "which gives every frame a timestep of its own: no step is one"
    if pieces := _any(PIECES, [name for name in arguments if not name.startswith("decode_")]):
        return f"which makes a video piece by piece ({pieces[0]}), each with the whole schedule: no step is one"
    if "guidance_scale" not in arguments and "guider" not in components:
        return "whose guidance cannot be set: its call has no guidance_scale"
    return None


def is_configurable(argument: inspect.Parameter) -> bool:
    """Whether a configuration can hold an argument of a call, by its annotation: text, numbers and mappings of them."""
    return argument.annotation is argument.empty or re.search(CONFIGURABLE, str(argument.annotation)) is not None


def _other_inputs(arguments: dict[str, inspect.Parameter]) -> list[str]:
    """Arguments that a call cannot do without beside prompts and an image: those without a default, and what a
    pipeline follows or changes.
    """
    needed = [name for name, p in arguments.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if others := [name for name in needed if name not in GIVEN]:
        return others
    followed = [name for name in FOLLOWED if name in arguments]
    return [] if followed == ["video"] and set(FRAMES) & set(arguments) else followed  # that one may be left out


def _any(words: Collection[str], names: Iterable[str]) -> list[str]:
    return [name for name in names if any(word in name for word in words)]
