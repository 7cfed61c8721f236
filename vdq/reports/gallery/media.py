"""Videos as sprite sheets: all frames of a video in one AVIF image, in rows from left to right.

A browser shows a frame by moving the sheet, so every video of the page stands at the same frame without decoding in
step, and no script has to read pixels, which is refused for pages opened from disk. AVIF, since WebP and most H.264
halve the colour's resolution, which at 64 x 64 pixels smears whole shapes.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vdq.errors import UserError

SPEED = 8  # of the encoder: 5 times as fast as its default and as small within a few per cent


@dataclass(frozen=True)
class Sheet:
    """An encoded sprite sheet and the mean squared error that encoding made, in levels of 0..255."""

    content: bytes
    squared_error: float


def columns_of(num_frames: int) -> int:
    """Frames in a row of a sheet: as square as it can be."""
    return math.ceil(math.sqrt(num_frames))


def shrink(frames: np.ndarray, edge: int) -> np.ndarray:
    """uint8 [T,H,W,3] whose longer edge is at most ``edge``; areas are averaged, and nothing is ever enlarged."""
    height, width = frames.shape[1:3]
    if max(height, width) <= edge:
        return frames
    scale = edge / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def video_sheet(frames: np.ndarray, quality: int) -> Sheet:
    """Encodes a video, uint8 [T,H,W,3], as a sheet."""
    sheet = _tile(frames)
    content, decoded = encode(sheet, quality)
    return Sheet(content, _squared_error(decoded, sheet))


def difference_sheet(frames: np.ndarray, reference: np.ndarray, edge: int, quality: int) -> Sheet:
    """The sheet of |frames - reference|, both uint8 [T,H,W,3], taken before shrinking to ``edge``.

    A difference d is stored as sqrt(255 d): the codec's error then is smallest where the page amplifies most. The page
    squares it (an SVG filter with exponent 2).
    """
    absolute = np.abs(frames.astype(np.int16) - reference).astype(np.uint8)
    sheet = _tile(shrink(absolute, edge)).astype(np.float64)
    content, decoded = encode(np.sqrt(255 * sheet).round().astype(np.uint8), quality)
    return Sheet(content, _squared_error(decoded.astype(np.float64) ** 2 / 255, sheet))


def frames_per_second(path: Path) -> float:
    """The frame rate of the video file of a sample. Raises UserError for a file without one."""
    try:
        with av.open(str(path)) as container:
            return float(container.streams.video[0].average_rate)
    except (av.FFmpegError, IndexError, TypeError) as error:
        raise UserError(f"video {path} has no frame rate ({error}); a video file is allowed") from error


def _tile(frames: np.ndarray) -> np.ndarray:
    """[T,H,W,3] -> one image [rows*H, columns*W, 3]; missing frames of the last row are black."""
    count, height, width, _ = frames.shape
    columns = columns_of(count)
    rows = -(-count // columns)
    full = np.zeros((rows * columns, height, width, 3), frames.dtype)
    full[:count] = frames
    return full.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def encode(image: np.ndarray, quality: int) -> tuple[bytes, np.ndarray]:
    """Encodes an image, uint8 [H,W,3], as AVIF; returns the file and what it decodes to.

    One thread, so that equal frames give equal files.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "AVIF", quality=quality, subsampling="4:4:4", speed=SPEED, max_threads=1)
    return file.getvalue(), np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))


def _squared_error(shown: np.ndarray, source: np.ndarray) -> float:
    return float(np.square(shown.astype(np.float64) - source).mean())
