"""Samples of a run on disk: what was sampled without loss, and an MP4 to look at.

Metrics read the lossless frames, since the codec's error at 64 x 64 pixels is larger than what 8-bit quantization
changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdq.data.video import write_mp4
from vdq.files import complete_or_nothing, write_json

VERSION = 1  # to be raised when noise, samplers or guidance give other latents; a model has a version of its own


def write_sample(
    folder: Path, index: int, latents: Tensor, frames: Tensor, fps: float, note: str = "", processor: str = ""
) -> None:
    """Writes latents [c, T, H, W] fp32 and frames uint8 [T, H, W, 3]; the lossless file comes last and makes it
    complete. ``note`` goes into the metadata of both, ``processor`` (what sampled it) into the lossless file's.
    """
    write_mp4(video_path(folder, index), frames, fps, comment=note)
    with complete_or_nothing(sample_path(folder, index)) as partial:
        tensors = {"latents": latents.contiguous(), "frames": frames.contiguous()}
        told = {"note": note, "processor": processor}
        save_file(tensors, partial, metadata={name: text for name, text in told.items() if text} or None)


def read_sample(folder: Path, index: int) -> dict[str, Tensor]:
    """``latents`` and ``frames`` of one prompt."""
    return load_file(sample_path(folder, index))


def read_processors(folder: Path) -> list[str]:
    """What sampled the videos of a folder, each once, sorted; 'unknown' for videos that do not tell."""
    found = set()
    for path in folder.glob("samples/*.safetensors"):
        with safe_open(path, "pt") as file:
            found.add((file.metadata() or {}).get("processor", "unknown"))
    return sorted(found)


def write_schedule(folder: Path, index: int, schedule: dict[str, Any]) -> None:
    """Writes what one prompt's video was sampled with, lists over the steps. To be written before the sample, which
    stands for a complete video.
    """
    write_json(folder / "schedules" / f"{index:04d}.json", schedule)


def read_schedules(folder: Path) -> list[dict[str, Any]]:
    """The schedules of all prompts that have one, in their order."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("schedules/*.json"))]


def video_path(folder: Path, index: int) -> Path:
    return folder / "videos" / f"{index:04d}.mp4"


def sample_path(folder: Path, index: int) -> Path:
    """Where the lossless file of a prompt is."""
    return folder / "samples" / f"{index:04d}.safetensors"
