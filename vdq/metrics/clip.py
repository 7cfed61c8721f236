"""CLIPSIM and CLIP-temp: cosines of CLIP embeddings, from one pass over the frames.

With f_t the L2-normalised embedding of frame t and g that of the prompt (EvalCrafter, arXiv 2310.11440, whose code the
paper used):

    CLIPSIM   = mean over t = 0..T-1 of f_t . g            text-video agreement
    CLIP-temp = mean over t = 0..T-2 of f_t . f_{t+1}      neighbouring frames only, no wrap-around

Cosines as they are: not multiplied by 100, not clamped at 0. Which CLIP model, and how a frame becomes its input
(EvalCrafter feeds raw 0..255 pixels), is the encoder's affair and decides what the numbers can be compared with.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vdq.errors import UserError
from vdq.metrics.base import VideoMetric
from vdq.metrics.catalogue import CLIP_TEMP, CLIPSIM


class ClipEncoder(Protocol):
    """A CLIP model with its preprocessing and tokenizer, in evaluation mode.

    Attributes:
        name: model and preprocessing, as a table should call them.
        sha256: hash of the weights file.
        frame_size: the only height and width it takes, None for any.
    """

    name: str
    sha256: str
    frame_size: tuple[int, int] | None

    def encode_images(self, frames: Tensor) -> Tensor:
        """uint8 [N,H,W,3] -> floating [N,D], normalised or not."""
        ...

    def encode_text(self, prompts: list[str]) -> Tensor:
        """n prompts -> floating [n,D], normalised or not, on the device of the image embeddings."""
        ...

    def truncated(self, prompts: list[str]) -> int:
        """How many of the prompts are longer than the model reads."""
        ...


def refused_size(encoder: ClipEncoder, height: int, width: int) -> str | None:
    """Why an encoder does not take frames of this size."""
    if encoder.frame_size in (None, (height, width)):
        return None
    allowed = "{}x{}".format(*encoder.frame_size)
    return f"frames have size {height}x{width}; {encoder.name} takes {allowed} only (metrics=paper takes any size)"


class ClipMetric(VideoMetric):
    """Mean CLIPSIM (`clipsim`) and CLIP-temp (`clip_temp`) over the videos, each in -1..1.

    Args:
        encoder: model that embeds frames and prompts.
        label: names the values of another encoder, `clipsim_<label>`.
        frames_per_batch: most frames in one forward; a batch never mixes videos, so a video's value does not depend
            on the videos beside it.
    """

    values = (CLIPSIM, CLIP_TEMP)

    def __init__(self, *, encoder: ClipEncoder, label: str = "", frames_per_batch: int = 64, **kwargs: Any) -> None:
        self.values = tuple(value.labelled(label) for value in type(self).values)
        super().__init__(**kwargs)
        if frames_per_batch < 1:
            raise UserError(f"frames_per_batch is {frames_per_batch}; an integer >= 1 is allowed")
        self.encoder = encoder
        self.frames_per_batch = frames_per_batch

    @property
    def assets(self) -> dict[str, str]:
        return {self.encoder.name: self.encoder.sha256}

    def notes(self, prompts: list[str]) -> dict[str, int]:
        """`truncated_prompts`: those of which the encoder reads the beginning only."""
        return {"truncated_prompts": self.encoder.truncated(prompts)}

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        if frames < 2:
            return "videos have 1 frame; clip_temp compares neighbouring frames, so T >= 2 is allowed"
        return refused_size(self.encoder, height, width)

    def update(self, videos: Tensor, prompts: Sequence[str], *, index: Sequence[int] | Tensor | None = None) -> None:
        """Add videos, uint8 [B,T,H,W,3], and their B prompts; `index` numbers the videos within the set.

        Raises:
            UserError: on another dtype or shape, a prompt too many or too few, or one-frame videos.
        """
        self.validate(videos, index)
        if isinstance(prompts, str) or len(prompts) != len(videos):
            raise UserError(f"prompts is {prompts!r}; one string for each of the {len(videos)} videos is allowed")
        scores = [self._score(video, prompt) for video, prompt in zip(videos, prompts, strict=True)]
        self.record(index, dict(zip(self.keys, zip(*scores, strict=True), strict=True)))

    def _score(self, video: Tensor, prompt: str) -> tuple[float, float]:
        chunks = [self.encoder.encode_images(frames) for frames in video.split(self.frames_per_batch)]
        frames = F.normalize(torch.cat(chunks).double(), dim=-1)
        text = F.normalize(self.encoder.encode_text([prompt]).double(), dim=-1)
        neighbours = (frames[:-1] * frames[1:]).sum(dim=-1)
        return (frames @ text[0]).mean().item(), neighbours.mean().item()
