"""Any folder of videos: which files it holds, which prompt and which reference belong to each, and which cannot be
used.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vdq.data.prompts import load_prompts
from vdq.data.read_video import read_video

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".gif")
FRAMES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Clip:
    """A video on disk, a file or a folder of frames, and what belongs to it; None where there is nothing."""

    path: Path
    prompt: str | None = None
    reference: Path | None = None


def load_clips(
    videos: str, prompts: str | None = None, reference: str | None = None
) -> tuple[list[Clip], dict[str, str]]:
    """The videos of a folder, or a single one, with their prompts and references, and the names of those that have
    none, with the reason.

    Videos are in the order of their names, numbers in them by value. `prompts` is a text file with one prompt a video
    in this order, or a CSV file with the columns ``file,prompt``. `reference` is a folder with a video of the same name
    (the ending may differ) for each, or a single video for a single one.

    Raises ValueError when a folder or file is missing or holds nothing, or when there are more or fewer prompts than
    videos.
    """
    paths = find_videos("videos", Path(videos))
    texts = _prompts(Path(prompts), paths) if prompts is not None else None
    references = _references(Path(reference), paths) if reference is not None else None
    clips, excluded = [], {}
    for path in paths:
        if texts is not None and path.name not in texts:
            excluded[path.name] = f"prompts={prompts} has no row for it"
        elif references is not None and path.name not in references:
            excluded[path.name] = f"reference={reference} has no video of that name"
        else:
            text = texts[path.name] if texts is not None else None
            clips.append(Clip(path, text, references[path.name] if references is not None else None))
    return clips, excluded


def find_videos(field: str, path: Path) -> list[Path]:
    """Video files and folders of frames in a folder, or the one that `path` itself is.

    Raises ValueError, with the name of the `field`, when there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{field}={path} must be a folder of videos, or one video")
    found = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    found = [entry for entry in found if entry.suffix.lower() in VIDEOS or _frame_files(entry)]
    if not found and _frame_files(path):
        return [path]
    if not found:
        raise ValueError(
            f"{field}={path} holds no video; allowed: {', '.join(VIDEOS)} and folders of frames ({', '.join(FRAMES)})"
        )
    return sorted(found, key=lambda entry: _by_number(entry.name))


def read_clip(path: Path) -> Tensor:
    """All frames of a video file or of a folder of frames, uint8 RGB [T, H, W, 3].

    Raises ValueError when it is empty or damaged, or when its frames differ in size.
    """
    if path.is_dir():
        return _read_frames(path)
    if path.stat().st_size == 0:
        raise ValueError(f"video {path} is an empty file; a complete video file is allowed")
    return read_video(path)


def _read_frames(folder: Path) -> Tensor:
    try:
        frames = [np.asarray(Image.open(file).convert("RGB")) for file in _frame_files(folder)]
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"folder of frames {folder} has a damaged image ({error})") from error
    sizes = sorted({frame.shape[:2] for frame in frames})
    if len(sizes) > 1:
        raise ValueError(f"folder of frames {folder} has frames of the sizes {sizes}; exactly one size is allowed")
    return torch.from_numpy(np.stack(frames))


def _frame_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    files = [file for file in path.iterdir() if file.suffix.lower() in FRAMES and not file.name.startswith(".")]
    return sorted(files, key=lambda file: _by_number(file.name))


def _by_number(name: str) -> list[tuple[int, str]]:
    """``2.mp4`` before ``10.mp4``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _prompts(file: Path, paths: list[Path]) -> dict[str, str]:
    """File name -> prompt."""
    if file.suffix.lower() == ".csv":
        return _csv_prompts(file)
    texts = load_prompts(file)
    if len(texts) != len(paths):
        raise ValueError(
            f"prompts={file} has {len(texts)} prompts for {len(paths)} videos; one a video in the order of their names "
            f"is allowed, or a CSV file with the columns file,prompt"
        )
    return {path.name: text for path, text in zip(paths, texts, strict=True)}


def _csv_prompts(file: Path) -> dict[str, str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"prompts={file} cannot be read ({error}); a CSV file in UTF-8 is allowed") from error
    if not rows or not {"file", "prompt"} <= rows[0].keys():
        raise ValueError(f"prompts={file} must have the columns file,prompt and at least one row")
    if incomplete := [number for number, row in enumerate(rows, 2) if not row["file"] or not row["prompt"]]:
        raise ValueError(f"prompts={file} has no file or no prompt in line {incomplete[0]}; both are needed")
    name, count = Counter(Path(row["file"]).name for row in rows).most_common(1)[0]
    if count > 1:
        raise ValueError(f"prompts={file} has {count} rows for {name}; one a file is allowed")
    return {Path(row["file"]).name: row["prompt"].strip() for row in rows}


def _references(folder: Path, paths: list[Path]) -> dict[str, Path]:
    """File name -> the reference with the same name up to its ending."""
    found = find_videos("reference", folder)
    if len(found) == len(paths) == 1:
        return {paths[0].name: found[0]}
    for field, group in (("videos", paths), ("reference", found)):
        stem, count = Counter(path.stem for path in group).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{field} has {count} videos named {stem}; references go by name, so one is allowed")
    stems = {path.stem: path for path in found}
    return {path.name: stems[path.stem] for path in paths if path.stem in stems}
