"""Top-1 retrieval by CLIPSIM: whether a video shows its own prompt rather than another of the set."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdq.errors import UserError
from vdq.metrics.base import VideoMetric, check_finite
from vdq.metrics.catalogue import TOP1
from vdq.metrics.clip import ClipEncoder, refused_size


class PromptRetrieval(VideoMetric):
    """Share of videos whose own prompt has the highest CLIPSIM of all candidates (`top1`), 0..1.

    Depends on the set of candidates: values of sets of different sizes cannot be compared. CLIPSIM is an average over
    frames, so a motion in the wrong direction is not seen.
    """

    values = (TOP1,)

    def __init__(self, *, encoder: ClipEncoder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder

    @property
    def assets(self) -> dict[str, str]:
        return {self.encoder.name: self.encoder.sha256}

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        return refused_size(self.encoder, height, width)

    def update(
        self,
        videos: Tensor,
        prompts: Sequence[str],
        candidates: Sequence[str],
        *,
        index: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Add videos, uint8 [B,T,H,W,3], their B prompts, and all prompts of the set.

        Raises:
            UserError: on another dtype or shape, or a prompt that is no candidate.
        """
        self.validate(videos, index)
        if unknown := set(prompts) - set(candidates):
            raise UserError(f"prompts has {min(unknown)!r}, which is not one of the {len(candidates)} candidates")
        texts = F.normalize(self.encoder.encode_text(list(candidates)).double(), dim=-1)
        similarities = torch.stack([self._similarity(video, texts) for video in videos])
        check_finite("the similarity of top1", similarities, self.assets)  # NaN would be the largest
        best = [candidates[number] for number in similarities.argmax(1).tolist()]
        self.record(index, {"top1": [float(a == b) for a, b in zip(best, prompts, strict=True)]})

    def _similarity(self, video: Tensor, texts: Tensor) -> Tensor:
        """CLIPSIM of one video with every candidate, [n]."""
        frames = F.normalize(self.encoder.encode_images(video).double(), dim=-1)
        return (frames @ texts.T).mean(0)
