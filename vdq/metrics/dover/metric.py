"""VQA-a and VQA-t: DOVER's aesthetic and technical score of each video, as percentages.

Which fragments and frames DOVER sees is random. Upstream draws them unseeded, so its VQA-t is not repeatable; here a
draw depends on the metric's seed, the video's index, the draw's number and the branch. Of a video of 16 frames the
aesthetic branch sees the first frame alone, as in the published program: see `views.AestheticView`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.metrics.base import UNNUMBERED, VideoMetric
from vdq.metrics.catalogue import VQA_A, VQA_T
from vdq.metrics.dover.model import Dover
from vdq.metrics.dover.scores import CONSTANTS, Spread, percentage
from vdq.metrics.dover.views import AestheticView, TechnicalView, aesthetic_clips, technical_clips

BRANCHES = {"aesthetic", "technical"}


class DoverMetric(VideoMetric):
    """Mean VQA-a (`vqa_a`) and VQA-t (`vqa_t`) over the videos, each 0..100.

    Args:
        model: the network, with its weights; see `published`.
        technical: which fragments the technical branch sees; None as published.
        aesthetic: which frames the aesthetic branch sees; None as published.
        num_offsets: number of draws of fragments and frames for each video. Their raw scores are averaged, as DOVER
            averages those of its clips, and the mean becomes one percentage: with more draws a video's value settles.
        seed: of the draws. A value depends neither on the order of the videos, nor on batches or processes; videos
            without an index all get the same draws.
        constants: mean and deviation of raw scores that the percentages refer to: a key of `scores.CONSTANTS`, or by
            branch those of another collection of videos.
    """

    values = (VQA_A, VQA_T)

    def __init__(
        self,
        *,
        model: Dover,
        technical: TechnicalView | None = None,
        aesthetic: AestheticView | None = None,
        num_offsets: int = 1,
        seed: int = 0,
        constants: str | Mapping[str, Spread] = "evalcrafter",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_offsets < 1:
            raise UserError(f"num_offsets is {num_offsets}; an integer >= 1 is allowed")
        if not isinstance(constants, Mapping) and constants not in CONSTANTS:
            raise UserError(f"constants is {constants!r}; one of {', '.join(CONSTANTS)} is allowed")
        if isinstance(constants, Mapping) and set(constants) != BRANCHES:
            raise UserError(f"constants is {dict(constants)}; {' and '.join(sorted(BRANCHES))} are needed in a mapping")
        self.model = model
        self.technical, self.aesthetic = technical or TechnicalView(), aesthetic or AestheticView()
        self.num_offsets, self.seed, self.constants = num_offsets, seed, constants

    @property
    def assets(self) -> dict[str, str]:
        return {self.model.name: self.model.sha256}

    def update(self, videos: Tensor, *, index: Sequence[int] | Tensor | None = None) -> None:
        """Add videos, uint8 [B,T,H,W,3]; `index` numbers them within the set.

        Raises:
            UserError: on another dtype or shape.
        """
        self.validate(videos, index)
        numbers = [UNNUMBERED] * len(videos) if index is None else [int(i) for i in index]
        scores = [self._score(video, number) for video, number in zip(videos, numbers, strict=True)]
        self.record(index, dict(zip(self.keys, zip(*scores, strict=True), strict=True)))

    def _score(self, video: Tensor, number: int) -> tuple[float, float]:
        """Both percentages of one video, uint8 [T,H,W,3]."""
        moves = self.aesthetic.frames.choices(len(video)) > 1  # otherwise every draw would see the same frames
        aesthetic = self._raw(video, number, "aesthetic", self.num_offsets if moves else 1)
        technical = self._raw(video, number, "technical", self.num_offsets)
        return percentage(aesthetic, "aesthetic", self.constants), percentage(technical, "technical", self.constants)

    @torch.inference_mode()
    def _raw(self, video: Tensor, number: int, branch: str, draws: int) -> float:
        """Mean raw score over draws and clips; one clip is in the network at a time."""
        scores = []
        for draw in range(draws):
            generator = self._generator(number, draw, branch)
            clips = (
                technical_clips(video, self.technical, generator)
                if branch == "technical"
                else aesthetic_clips(video, self.aesthetic, generator)
            )
            scores += [self.model(clip[None], branch) for clip in clips]
        return torch.cat(scores).double().mean().item()

    def _generator(self, number: int, draw: int, branch: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {number} {draw} {branch}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
