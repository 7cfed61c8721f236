"""What a folder of videos holds: videos in their order, and everything else with the reason why it is none."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vdq.errors import UserError

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv")
VIDEOS += (".flv", ".ogv", ".3gp")
FRAMES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Listing:
    """What a folder holds; hidden files are no part of it.

    `videos` are in the order of their names, numbers in them by value. Those that cannot be used are among them, and in
    `unusable` with the reason. `others` are no videos, with what they are instead.
    """

    videos: list[Path]
    unusable: dict[Path, str] = field(default_factory=dict)
    others: dict[Path, str] = field(default_factory=dict)


def list_videos(name: str, path: Path) -> Listing:
    """Video files and folders of frames in a folder, or the one that `path` itself is.

    Raises UserError, with the `name` of the field, when there is none.
    """
    if path.is_file():
        return Listing([path])
    if not path.is_dir():
        raise UserError(f"{name}={path} must be a folder of videos, or one video")
    listing = Listing([])
    for entry in sorted(_visible(path), key=_by_number):
        kind, reason = _judge(entry)
        if kind == "other":
            listing.others[entry] = reason
            continue
        listing.videos.append(entry)
        if kind == "unusable":
            listing.unusable[entry] = reason
    if not listing.videos and frame_files(path):
        return Listing([path])
    if not listing.videos:
        raise UserError(
            f"{name}={path} holds no video; allowed: {', '.join(VIDEOS)} and folders of frames ({', '.join(FRAMES)})"
        )
    return listing


def shown(path: Path) -> str:
    """The name of a file as text that can be printed and stored, whatever bytes it has."""
    return os.fsencode(path.name).decode(errors="backslashreplace")


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder of frames, in their order."""
    return sorted((file for file in _visible(folder) if file.suffix.lower() in FRAMES), key=_by_number)


def animated(image: Path) -> bool:
    """Whether an image file holds several images."""
    try:
        with Image.open(image) as opened:
            return getattr(opened, "is_animated", False)
    except OSError:  # no image
        return False


def _judge(entry: Path) -> tuple[str, str]:
    """Whether an entry of a folder is a "video", an "unusable" one or an "other" thing, and why it is no video."""
    ending = entry.suffix.lower()
    broken = "unusable" if ending in VIDEOS else "other"
    if not entry.exists():
        return broken, f"it is a link to {os.readlink(entry)}, which is not there"
    if shown(entry) != entry.name:
        return "unusable", "its name is not UTF-8"
    if not os.access(entry, os.R_OK):
        return broken, "it may not be read"
    if entry.is_dir():
        return _judge_folder(entry)
    if not entry.is_file():
        return broken, "it is neither a file nor a folder"
    if ending in FRAMES:
        return ("unusable", "it is an animated image") if animated(entry) else ("other", "it is an image")
    return ("video", "") if ending in VIDEOS else ("other", "its name does not end like that of a video")


def _judge_folder(folder: Path) -> tuple[str, str]:
    endings = {path.suffix.lower() for path in folder.rglob("*")}
    if frame_files(folder):
        return ("unusable", "it holds videos beside images") if endings & {*VIDEOS} else ("video", "")
    if endings & {*VIDEOS, *FRAMES}:
        return "unusable", f"it is a folder with videos of its own, which videos={folder} scores"
    return "unusable" if folder.suffix.lower() in VIDEOS else "other", "it is a folder without frames"


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _by_number(path: Path) -> tuple[list, list]:
    """Sorts ``2.mp4`` before ``10.mp4``, digits before letters, and ``a.mp4`` before ``a1.mp4``."""
    return _parts(path.stem), _parts(path.name)


def _parts(text: str) -> list[tuple[int, int, str]]:
    parts = (part for part in re.split(r"([0-9]+)", text) if part)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts]
