"""Any folder of videos: which files it holds, which prompt and which reference belong to each, and which cannot be
used.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vdq.data.listing import Listing, animated, frame_files, list_videos, shown
from vdq.data.prompts import load_prompts
from vdq.data.read_video import read_video
from vdq.errors import UserError


@dataclass(frozen=True)
class Clip:
    """A video on disk, a file or a folder of frames, and what belongs to it; None where there is nothing."""

    path: Path
    prompt: str | None = None
    reference: Path | None = None


@dataclass(frozen=True)
class Clips:
    """Videos to be scored; by name the videos that cannot be, and what is no video, each with the reason."""

    clips: list[Clip]
    excluded: dict[str, str]
    others: dict[str, str]


def load_clips(videos: str, prompts: str | None = None, reference: str | None = None) -> Clips:
    """The videos of a folder, or a single one, with their prompts and references.

    `prompts` is a text file with one prompt a video in the order of `Listing`, or a CSV file with the columns
    ``file,prompt``. `reference` is a folder with a video of the same name (the ending may differ) for each, or a single
    video for a single one.

    Raises UserError when a folder or file is missing or holds nothing, or when there are more or fewer prompts than
    videos.
    """
    listing = list_videos("videos", Path(videos))
    excluded = {shown(path): reason for path, reason in listing.unusable.items()}
    texts = _prompts(Path(prompts), listing.videos) if prompts is not None else None
    references = list_videos("reference", Path(reference)) if reference is not None else None
    partners = _partners(references, listing.videos) if references else None
    clips = []
    for path in listing.videos:
        name = shown(path)
        if name in excluded:
            continue
        if texts is not None and path.name not in texts:
            excluded[name] = f"prompts={prompts} has no row for it"
        elif partners is not None and path not in partners:
            excluded[name] = f"reference={reference} has no video of that name"
        elif partners is not None and (reason := references.unusable.get(partners[path])):
            excluded[name] = f"its reference cannot be used: {reason}"
        else:
            text = texts[path.name] if texts is not None else None
            clips.append(Clip(path, text, partners[path] if partners is not None else None))
    others = {shown(path): reason for path, reason in listing.others.items()}
    for name in sorted((texts or {}).keys() - {path.name for path in listing.videos}):
        if name in others or not (listing.videos[0].parent / name).exists():
            excluded[name] = f"prompts={prompts} has a row for it, but there is no such video"
    return Clips(clips, excluded, others)


def read_clip(path: Path) -> Tensor:
    """All frames of a video file or of a folder of frames, uint8 RGB [T, H, W, 3].

    Raises UserError when it is empty or damaged, or when its frames differ in size.
    """
    if path.is_dir():
        return _read_frames(path)
    if path.stat().st_size == 0:
        raise UserError(f"video {path} is an empty file; a complete video file is allowed")
    return read_video(path)


def _read_frames(folder: Path) -> Tensor:
    frames = []
    for file in frame_files(folder):
        if animated(file):
            raise UserError(
                f"folder of frames {folder} has the animated image {file.name}; one image a frame is allowed"
            )
        try:
            frames.append(np.asarray(Image.open(file).convert("RGB")))
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"folder of frames {folder} has a damaged image ({error})") from error
    sizes = sorted({frame.shape[:2] for frame in frames})
    if len(sizes) > 1:
        raise UserError(f"folder of frames {folder} has frames of the sizes {sizes}; exactly one size is allowed")
    return torch.from_numpy(np.stack(frames))


def _prompts(file: Path, paths: list[Path]) -> dict[str, str]:
    """File name -> prompt."""
    if file.suffix.lower() == ".csv":
        return _csv_prompts(file)
    texts = load_prompts(file)
    if len(texts) != len(paths):
        raise UserError(
            f"prompts={file} has {len(texts)} prompts for {len(paths)} videos; one a video in the order of their names "
            f"is allowed, or a CSV file with the columns file,prompt"
        )
    return {path.name: text for path, text in zip(paths, texts, strict=True)}


def _csv_prompts(file: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            if not {"file", "prompt"} <= {*(rows.fieldnames or ())}:
                raise UserError(f"prompts={file} must have the columns file,prompt")
            for row in rows:
                name, text = _csv_row(row, f"prompts={file} line {rows.line_num}")
                if name in texts:
                    raise UserError(f"prompts={file} has several rows for {name}; one a file is allowed")
                texts[name] = text
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"prompts={file} cannot be read ({error}); a CSV file in UTF-8 is allowed") from error
    if not texts:
        raise UserError(f"prompts={file} must have at least one row")
    return texts


def _csv_row(row: dict, line: str) -> tuple[str, str]:
    """File name and prompt; what stands under None is more than the columns."""
    if None in row:
        raise UserError(f"{line} has more fields than there are columns; a prompt with commas must be in quotes")
    name, text = ((row[column] or "").strip() for column in ("file", "prompt"))
    if not name or not text:
        raise UserError(f"{line} has no file or no prompt; both are needed")
    return Path(name).name, text


def _partners(references: Listing, videos: list[Path]) -> dict[Path, Path]:
    """Video -> the reference with the same name up to its ending."""
    if len(references.videos) == len(videos) == 1:
        return {videos[0]: references.videos[0]}
    for name, group in (("videos", videos), ("reference", references.videos)):
        stem, count = Counter(path.stem for path in group).most_common(1)[0]
        if count > 1:
            raise UserError(f"{name} has {count} videos named {stem}; references go by name, so one is allowed")
    stems = {path.stem: path for path in references.videos}
    return {path: stems[path.stem] for path in videos if path.stem in stems}
