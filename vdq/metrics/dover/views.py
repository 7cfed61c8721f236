"""What the two branches see of a video.

The technical branch gets clips of many frames, each a mosaic of fragments cut out at full resolution; the aesthetic
branch gets frames from all over the video, squashed to a small square. Where frames and fragments start is drawn by
`draw_starts` and `draw_offsets`; everything else is a function of what was drawn.

Videos are uint8 [T, H, W, 3], RGB; views are normalised fp32 [clips, 3, frames, height, width].
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vdq.errors import UserError

MEAN = (123.675, 116.28, 103.53)  # of ImageNet, on the scale 0..255
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class FrameSampling:
    """Which frames are taken: `repeats` times, from each of `fragments` equal segments of the video, `length` frames
    that are `interval` apart.
    """

    length: int
    fragments: int
    interval: int
    repeats: int = 1

    def __post_init__(self) -> None:
        _check_positive(self)

    def choices(self, num_frames: int) -> int:
        """Number of places that a start is drawn from; 1 where it is fixed, as in every short video."""
        return max(1, num_frames // self.fragments - self.length * self.interval)


@dataclass(frozen=True)
class TechnicalView:
    """Mosaics for the technical branch: `clips` clips of `clip_frames` frames, of `fragments_h` x `fragments_w`
    fragments of `fragment_h` x `fragment_w` pixels, which stay in place for `aligned` frames.

    The defaults are the published ones. A video smaller than the mosaic is enlarged; `stale_grid` then cuts fragments
    where they would lie in the small video, an error of the published program. Raises UserError on numbers below 1 and
    where `aligned` does not divide the frames.
    """

    clips: int = 3
    clip_frames: int = 32
    frame_interval: int = 2
    fragments_h: int = 7
    fragments_w: int = 7
    fragment_h: int = 32
    fragment_w: int = 32
    aligned: int = 32
    stale_grid: bool = False

    def __post_init__(self) -> None:
        _check_positive(self)
        frames = self.clips * self.clip_frames
        if frames % self.aligned:
            raise UserError(f"aligned is {self.aligned}; a divisor of clips * clip_frames = {frames} is allowed")

    @property
    def frames(self) -> FrameSampling:
        return FrameSampling(self.clip_frames, self.clips, self.frame_interval)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the mosaic."""
        return self.fragments_h * self.fragment_h, self.fragments_w * self.fragment_w

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Distance between neighbouring fragments in a video of that size."""
        return height // self.fragments_h, width // self.fragments_w


@dataclass(frozen=True)
class AestheticView:
    """Small frames for the aesthetic branch: `clips` clips of `clip_frames` frames of `height` x `width` pixels, taken
    from `time_fragments` segments of the video.

    The defaults are the published ones: one frame from each of 32 segments. Of a video of fewer than 32 frames, all 32
    are its first, an error of the published program. Raises UserError on numbers below 1 and where `time_fragments`
    does not divide `clip_frames`.
    """

    clips: int = 1
    clip_frames: int = 32
    time_fragments: int = 32
    frame_interval: int = 2
    height: int = 224
    width: int = 224

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.clip_frames % self.time_fragments:
            raise UserError(
                f"time_fragments is {self.time_fragments}; a divisor of clip_frames = {self.clip_frames} is allowed"
            )

    @property
    def frames(self) -> FrameSampling:
        length = self.clip_frames // self.time_fragments
        return FrameSampling(length, self.time_fragments, self.frame_interval, self.clips)


def technical_clips(video: Tensor, view: TechnicalView, generator: torch.Generator) -> Tensor:
    """Video -> view of the technical branch. The generator, on the CPU, gives the starts and then the offsets."""
    starts = draw_starts(view.frames, len(video), generator)
    large = enlarge(video, view)
    size = video.shape[1:3] if view.stale_grid else large.shape[1:3]
    offsets = draw_offsets(view, *size, generator)
    index = frame_indices(view.frames, len(video), starts)
    return normalize(cut_fragments(large, index, view, size, offsets), view.clips)


def aesthetic_clips(video: Tensor, view: AestheticView, generator: torch.Generator) -> Tensor:
    """Video -> view of the aesthetic branch. The generator, on the CPU, gives the starts."""
    starts = draw_starts(view.frames, len(video), generator)
    return normalize(resize(video[frame_indices(view.frames, len(video), starts)], view), view.clips)


def draw_starts(frames: FrameSampling, num_frames: int, generator: torch.Generator) -> Tensor:
    """long [repeats, fragments]: start of each fragment within its segment, equally likely.

    Nothing is drawn of a short video, as upstream: the offsets then are the first numbers of the generator.
    """
    shape = (frames.repeats, frames.fragments)
    choices = frames.choices(num_frames)
    return torch.randint(choices, shape, generator=generator) if choices > 1 else torch.zeros(shape, dtype=torch.long)


def frame_indices(frames: FrameSampling, num_frames: int, starts: Tensor) -> Tensor:
    """long [repeats * fragments * length]: the frames taken; beyond the last frame they begin again at the first.

    index = (segment + start + k * interval) mod num_frames, k = 0..length-1. Where there are fewer frames than
    segments, every segment begins at frame 0.
    """
    segments = torch.arange(frames.fragments) * (num_frames // frames.fragments)
    steps = torch.arange(frames.length) * frames.interval
    return ((segments + starts)[..., None] + steps).flatten() % num_frames


def enlarge(video: Tensor, view: TechnicalView) -> Tensor:
    """A video smaller than the mosaic, in height or width, enlarged until it is not; any other video as it is.

    Bilinear without antialias and cut off to uint8, on the scale 0..1, as upstream: both decide the last level.
    """
    ratio = min(have / need for have, need in zip(video.shape[1:3], view.size, strict=True))
    if ratio >= 1:
        return video
    return (_interpolate(video / 255, scale_factor=1 / ratio) * 255).to(torch.uint8)


def draw_offsets(view: TechnicalView, height: int, width: int, generator: torch.Generator) -> Tensor:
    """long [2, fragments_h, fragments_w, blocks]: how far down and right of its grid point each fragment lies.

    All rows first, then all columns; as upstream, nothing is drawn for a side without room. The upper bound is
    exclusive as upstream, so the last place that would fit never occurs.
    """
    shape = (view.fragments_h, view.fragments_w, view.clips * view.clip_frames // view.aligned)
    tile = (view.fragment_h, view.fragment_w)
    rooms = (step - length for step, length in zip(view.grid(height, width), tile, strict=True))
    return torch.stack(
        [
            torch.randint(room, shape, generator=generator) if room > 0 else torch.zeros(shape, dtype=torch.long)
            for room in rooms
        ]
    )


def cut_fragments(video: Tensor, index: Tensor, view: TechnicalView, size: tuple[int, int], offsets: Tensor) -> Tensor:
    """Mosaics of the frames `index`, uint8 [frames, *view.size, 3].

    `size` is the height and width that the grid is made for: those of `video`, or with a stale grid smaller ones.
    """
    mosaic = video.new_empty(len(index), *view.size, 3)
    rows, columns = view.grid(*size)
    height, width = view.fragment_h, view.fragment_w
    for (i, j, block), (down, right) in zip(_positions(offsets), offsets.flatten(1).T.tolist(), strict=True):
        top = min(rows * i, size[0] - height) + down
        left = min(columns * j, size[1] - width) + right
        frames = slice(block * view.aligned, (block + 1) * view.aligned)
        fragment = video[:, top : top + height, left : left + width][index[frames]]
        mosaic[frames, i * height : (i + 1) * height, j * width : (j + 1) * width] = fragment
    return mosaic


def resize(frames: Tensor, view: AestheticView) -> Tensor:
    """uint8 [n, H, W, 3] -> uint8 [n, height, width, 3]: bilinear, rounded half to even.

    No antialias, which torchvision had not by default when the weights were trained; with it, pixels differ by some two
    levels. One frame at a time, so that floating point frames of a large video are not all held at once.
    """
    size = (view.height, view.width)
    return torch.cat([_interpolate(frame[None].float(), size=size).round().to(torch.uint8) for frame in frames])


def normalize(frames: Tensor, clips: int) -> Tensor:
    """uint8 [clips * n, H, W, 3] -> fp32 [clips, 3, n, H, W]."""
    mean, std = (torch.tensor(values, device=frames.device) for values in (MEAN, STD))
    return ((frames - mean) / std).unflatten(0, (clips, -1)).movedim(-1, 1)


def _interpolate(frames: Tensor, **size: Any) -> Tensor:
    """Floating [n, H, W, 3] -> [n, H', W', 3], bilinear without antialias.

    Each colour as an image of its own: of several colours together, torch's kernel rounds otherwise when there is but
    one thread.
    """
    planes = frames.movedim(-1, 1).flatten(0, 1)[:, None].contiguous()
    planes = F.interpolate(planes, mode="bilinear", align_corners=False, **size)
    return planes[:, 0].unflatten(0, (len(frames), -1)).movedim(1, -1)


def _positions(offsets: Tensor) -> list[tuple[int, int, int]]:
    """Row, column and block of every fragment, in the order of `offsets[0].flatten()`."""
    return [
        (i, j, block) for i, row in enumerate(offsets[0]) for j, tile in enumerate(row) for block in range(len(tile))
    ]


def _check_positive(parameters: Any) -> None:
    for name, value in asdict(parameters).items():
        if type(value) is not bool and (type(value) is not int or value < 1):
            raise UserError(f"{name} is {value!r}; an integer >= 1 is allowed")
