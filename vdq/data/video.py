"""Videos on disk: float output to uint8 frames, frames to MP4 and back, and contact sheets.

Encoding is part of an evaluation's protocol (spec of the paper's metrics): the codec is H.264 4:2:0 at a fixed CRF with
one encoder thread, so that equal frames give equal files on any number of cores.
"""

import logging
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from os import PathLike
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vdq.files import complete_or_nothing

try:
    import decord
except ImportError:  # no wheel for this platform
    decord = None

logger = logging.getLogger(__name__)

MARGIN = 8
FONT_SIZE = 14


def to_uint8(video: Tensor) -> Tensor:
    """Frames of a decoded video: floating [...,3,T,H,W] in -1..1 -> uint8 [...,T,H,W,3].

    As Open-Sora 1.0 saves its samples (`opensora/datasets/utils.py:15-35`): clamp to -1..1, (x + 1) / 2, * 255 + 0.5,
    clamp to 0..255, truncate. The arithmetic stays in the tensor's dtype (fp16 differs from fp32 by one level in about
    4% of the pixels); unlike upstream the input is left as it is.

    Raises:
        ValueError: on another shape, an integer dtype, or NaN, whose uint8 value would be arbitrary.
    """
    if not video.is_floating_point() or video.ndim < 4 or video.shape[-4] != 3:
        raise ValueError(f"video is {video.dtype} {tuple(video.shape)}; only a floating [...,3,T,H,W] is allowed")
    if video.isnan().any():
        raise ValueError(f"video holds {int(video.isnan().sum())} NaN values; only numbers are allowed")
    unit = video.clamp(-1, 1).add_(1).div_(2)
    return unit.mul_(255).add_(0.5).clamp_(0, 255).movedim(-4, -1).to(torch.uint8).contiguous()


def write_mp4(path: str | PathLike[str], frames: Tensor, fps: float, *, crf: int = 18, comment: str = "") -> None:
    """Write uint8 frames [T,H,W,3] as H.264 yuv420p; the file appears complete or not at all.

    Args:
        path: file to write or replace; its folder is created.
        frames: RGB frames with even height and width, which 4:2:0 needs.
        fps: frames per second.
        crf: constant rate factor of x264, 0 (best) to 51.
        comment: text for the file's metadata.

    Raises:
        ValueError: on another dtype or shape, an odd size, or fps or crf out of range.
    """
    _check_frames("frames", frames)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames have size {height}x{width}; only even heights and widths are allowed by yuv420p")
    if not fps > 0:
        raise ValueError(f"fps is {fps}; a number above 0 is allowed")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is {crf}; 0 to 51 is allowed")
    with complete_or_nothing(Path(path)) as partial, av.open(str(partial), mode="w", format="mp4") as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames.cpu().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: str | PathLike[str]) -> Tensor:
    """All frames of a video file as uint8 RGB [T,H,W,3], turned upright.

    decord reads the file, PyAV where decord cannot (GIF, AV1, platforms without decord); the two agree to the bit on
    8-bit video.

    Raises:
        ValueError: if the file is missing, holds no video, or cannot be decoded to its end.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"video {path} does not exist; an existing file is allowed")
    frames = _read_with_decord(path) if decord is not None else None
    if frames is None:
        frames = _read_with_pyav(path)
    return torch.from_numpy(frames)


def contact_sheet(
    videos: Sequence[Tensor],
    captions: Sequence[str],
    frames_per_video: int,
    path: str | PathLike[str],
    columns: int = 1,
) -> None:
    """Write a PNG with one row a video: its caption, and below it frames evenly spaced from the first to the last.

    The rows fill `columns` columns, one after the other.

    Args:
        videos: uint8 [T,H,W,3] each, all with the same H and W; T may differ.
        captions: one for each video, wrapped to the width of the row.
        frames_per_video: frames in a row; a video with fewer shows all it has.
        path: file to write or replace; its folder is created.

    Raises:
        ValueError: on no videos, another dtype, shape or number of captions, or frame sizes that differ.
    """
    for video in videos:
        _check_frames("videos", video)
    sizes = {tuple(video.shape[1:3]) for video in videos}
    if len(sizes) != 1:
        raise ValueError(f"videos have the frame sizes {sorted(sizes)}; exactly one size is allowed")
    if len(captions) != len(videos):
        raise ValueError(f"captions has {len(captions)} entries; one for each of the {len(videos)} videos is allowed")
    if frames_per_video < 1:
        raise ValueError(f"frames_per_video is {frames_per_video}; an integer >= 1 is allowed")
    rows = [_row(video, frames_per_video) for video in videos]
    width = max(row.width for row in rows)
    font = ImageFont.load_default(FONT_SIZE)
    texts = [_wrap(caption, font, width) for caption in captions]
    height = -(-len(rows) // columns)
    starts = range(0, len(rows), height)
    sheets = [_column(rows[start : start + height], texts[start : start + height], font, width) for start in starts]
    with complete_or_nothing(Path(path)) as partial:
        _side_by_side(sheets).save(partial, format="PNG")


def _check_frames(name: str, frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 1:
        raise ValueError(f"{name} is {frames.dtype} {tuple(frames.shape)}; only uint8 [T,H,W,3] with T >= 1 is allowed")


def _read_with_decord(path: Path) -> np.ndarray | None:
    """Frames [T,H,W,3], or None where decord cannot read the file."""
    try:
        reader = decord.VideoReader(str(path))
        return reader.get_batch(range(len(reader))).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        _say_once(path.name, str(error).splitlines()[0].rpartition("] ")[2])
        return None


@cache
def _say_once(name: str, reason: str) -> None:
    logger.info("decord cannot read %s, PyAV takes over (%s)", name, reason)


def _read_with_pyav(path: Path) -> np.ndarray:
    try:
        with av.open(str(path)) as container:
            # decord applies the rotation of the container's display matrix, PyAV only reports it.
            frames = [
                np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in container.decode(video=0)
            ]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"video {path} cannot be decoded ({error}); a complete video file is allowed") from error
    if not frames:
        raise ValueError(f"video {path} holds no frames; a complete video file is allowed")
    return np.stack(frames)


def _row(video: Tensor, count: int) -> Image.Image:
    """`count` frames of a video side by side, with a margin between them."""
    steps = np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)
    height, width = video.shape[1:3]
    row = Image.new("RGB", (len(steps) * (width + MARGIN) - MARGIN, height), "white")
    for column, step in enumerate(steps):
        row.paste(Image.fromarray(video[step].cpu().numpy()), (column * (width + MARGIN), 0))
    return row


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of `text` that fit `width` pixels where words allow."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _column(rows: list[Image.Image], texts: list[list[str]], font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """Caption and frames of every row, one below the other."""
    line_height = sum(font.getmetrics()) + 2
    height = MARGIN + sum(
        row.height + len(lines) * line_height + MARGIN for row, lines in zip(rows, texts, strict=True)
    )
    sheet = Image.new("RGB", (width + 2 * MARGIN, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, lines in zip(rows, texts, strict=True):
        for line in lines:
            draw.text((MARGIN, top), line, fill="black", font=font)
            top += line_height
        sheet.paste(row, (MARGIN, top))
        top += row.height + MARGIN
    return sheet


def _side_by_side(sheets: list[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (sum(sheet.width for sheet in sheets), max(sheet.height for sheet in sheets)), "white")
    left = 0
    for sheet in sheets:
        whole.paste(sheet, (left, 0))
        left += sheet.width
    return whole
