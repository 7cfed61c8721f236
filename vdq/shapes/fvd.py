"""FVD on the testbed: features of its small DOVER, and rendered real clips. Its values do not compare with FVD's."""

from __future__ import annotations

import hashlib
import random
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from vdq.errors import UserError
from vdq.metrics.base import check_videos
from vdq.metrics.dover.views import technical_clips
from vdq.shapes.dover import dover
from vdq.shapes.nets import TECHNICAL
from vdq.shapes.render import FRAMES, SIDE, render
from vdq.shapes.scenes import split


class ShapesDetector(nn.Module):
    """The technical backbone of the small DOVER, a video transformer, averaged over positions: 96 features of videos of
    16 frames of 64 x 64 pixels. Weights as in vdq.shapes.dover. It learned to tell the testbed's distortions apart, not
    actions as I3D did.
    """

    unsigned = ("weights",)
    name = "shapes-dover technical features"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        model = dover(weights)
        self.sha256, self.net = model.sha256, model.technical_backbone
        self.width = self.net.out_channels

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        if (frames, height, width) == (FRAMES, SIDE, SIDE):
            return None
        return f"videos are {frames}x{height}x{width}; {self.name} takes {FRAMES}x{SIDE}x{SIDE} only"

    @torch.no_grad()
    def features(self, videos: Tensor) -> Tensor:
        """uint8 [B,16,64,64,3] to float32 [B,96], one video at a time; UserError for other videos."""
        check_videos("videos", videos)
        if reason := self.refusal(*videos.shape[1:4]):
            raise UserError(reason)
        return torch.cat([self._features(video) for video in videos])

    def _features(self, video: Tensor) -> Tensor:
        # The view's fragments lie as in the video, so that nothing is drawn from the generator.
        clips = technical_clips(video, TECHNICAL, torch.Generator().manual_seed(0))
        return self.net(clips).mean(dim=(2, 3, 4))


class ShapesClips:
    """Real clips: item i is uint8 [16, 64, 64, 3], a scene of `split` as vdq.shapes.render draws it.

    Scenes are drawn from a part that no evaluation prompt is of, with all motions, shapes and backgrounds. Raises
    UserError when there are not as many.
    """

    num_frames = FRAMES

    def __init__(self, num_clips: int = 512, seed: int = 0, part: str = "training") -> None:
        scenes = split()[part]
        if not 2 <= num_clips <= len(scenes):
            raise UserError(f"num_clips={num_clips} must be in 2..{len(scenes)}, the {part} scenes")
        self.scenes, self.seed = random.Random(seed).sample(scenes, num_clips), seed
        self.name = f"{num_clips} rendered {part} scenes, seed {seed}"

    @cached_property
    def signature(self) -> str:
        """The SHA-256 of the clips themselves."""
        total = hashlib.sha256()
        for index in range(len(self)):
            total.update(self[index].numpy().tobytes())
        return total.hexdigest()

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng([self.seed, index])
        return torch.from_numpy(render(self.scenes[index], rng))
