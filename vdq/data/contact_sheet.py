"""Contact sheets: videos as rows of frames in one picture, to be seen at a glance."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from vdq.data.video import check_frames
from vdq.errors import UserError
from vdq.files import complete_or_nothing

MARGIN = 8
FONT_SIZE = 14


def contact_sheet(
    videos: Sequence[Tensor],
    captions: Sequence[str],
    frames_per_video: int,
    path: str | PathLike[str],
    columns: int = 1,
    *,
    remarks: Sequence[str] | None = None,
    heading: str = "",
) -> None:
    """Write a PNG with one row a video: its caption, and below it frames evenly spaced from the first to the last.

    The rows fill `columns` columns, one after the other.

    Args:
        videos: uint8 [T,H,W,3] each, all with the same H and W; T may differ.
        captions: one for each video, wrapped to the width of the row.
        frames_per_video: frames in a row; a video with fewer shows all it has.
        path: file to write or replace; its folder is created.
        remarks: one for each video, in red below its caption; "" where there is none.
        heading: above all columns, wrapped to their width.

    Raises:
        UserError: on no videos, another dtype, shape or number of captions or remarks, or frame sizes that differ.
    """
    for video in videos:
        check_frames("videos", video)
    sizes = {tuple(video.shape[1:3]) for video in videos}
    if len(sizes) != 1:
        raise UserError(f"videos have the frame sizes {sorted(sizes)}; exactly one size is allowed")
    remarks = [""] * len(videos) if remarks is None else remarks
    for name, texts in {"captions": captions, "remarks": remarks}.items():
        if len(texts) != len(videos):
            raise UserError(f"{name} has {len(texts)} entries; one for each of the {len(videos)} videos is allowed")
    if frames_per_video < 1:
        raise UserError(f"frames_per_video is {frames_per_video}; an integer >= 1 is allowed")
    rows = [_row(video, frames_per_video) for video in videos]
    width = max(row.width for row in rows)
    texts = [
        _text([(caption, "black"), (remark, "red")], width) for caption, remark in zip(captions, remarks, strict=True)
    ]
    blocks = [_below_each_other([text, row]) for text, row in zip(texts, rows, strict=True)]
    height = -(-len(blocks) // columns)
    starts = range(0, len(blocks), height)
    sheet = _side_by_side([_below_each_other(blocks[start : start + height], MARGIN) for start in starts], 2 * MARGIN)
    if heading:
        sheet = _below_each_other([_text([(heading, "black")], sheet.width), sheet], MARGIN)
    with complete_or_nothing(Path(path)) as partial:
        ImageOps.expand(sheet, MARGIN, "white").save(partial, format="PNG")


def _row(video: Tensor, count: int) -> Image.Image:
    """`count` frames of a video side by side, with a margin between them."""
    steps = np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)
    return _side_by_side([Image.fromarray(video[step].cpu().numpy()) for step in steps], MARGIN)


def _text(parts: Sequence[tuple[str, str]], width: int) -> Image.Image:
    """Texts with their colours, each wrapped to `width` pixels and on lines of its own."""
    font = ImageFont.load_default(FONT_SIZE)
    lines = [(line, color) for text, color in parts if text for line in _wrap(text, font, width)]
    step = sum(font.getmetrics()) + 2
    image = Image.new("RGB", (width, step * len(lines)), "white")
    for number, (line, color) in enumerate(lines):
        ImageDraw.Draw(image).text((0, step * number), line, fill=color, font=font)
    return image


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


def _below_each_other(images: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    heights = [image.height for image in images]
    whole = Image.new("RGB", (max(image.width for image in images), sum(heights) + gap * (len(images) - 1)), "white")
    for number, image in enumerate(images):
        whole.paste(image, (0, sum(heights[:number]) + gap * number))
    return whole


def _side_by_side(images: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    widths = [image.width for image in images]
    whole = Image.new("RGB", (sum(widths) + gap * (len(images) - 1), max(image.height for image in images)), "white")
    for number, image in enumerate(images):
        whole.paste(image, (sum(widths[:number]) + gap * number, 0))
    return whole
