"""Writes the gallery of some runs: one page, and the sprite sheets of its videos in ``media/`` beside it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vdq.data.samples import read_sample, video_path
from vdq.errors import UserError
from vdq.files import complete_folder_or_nothing
from vdq.reports.gallery import markdown, media
from vdq.reports.gallery.page import MARK, RUN_FIELDS, content_of, html_page
from vdq.reports.gallery.sheets import Sheets

log = logging.getLogger(__name__)
FIELDS = (*RUN_FIELDS, "model", "dataset", "folder")


def write_gallery(
    runs: pd.DataFrame,
    tables: Mapping[str, str] | Sequence[Path],
    folder: Path,
    *,
    prompts: int = 12,
    metrics: Sequence[str] = ("clipsim", "psnr"),
    edge: int = 256,
    quality: int = 70,
    difference_quality: int = 55,
    title: str = "Videos of quantized models",
    note: str = "",
) -> None:
    """Writes ``folder``/index.html and its media; the gallery appears complete or not at all and replaces an older one,
    whose sheets of the same frames it takes over.

    Args:
        runs: rows of the registry in the order of the columns; one of them is the reference of all.
        tables: title -> Markdown, or Markdown files, shown above the videos.
        folder: of the gallery; if it exists it must hold a gallery.
        prompts: rows, evenly spaced over the prompts that every run has.
        metrics: what headings and cells show, as far as the runs have it; the large view shows every metric.
        edge: longest edge of a frame in pixels; larger frames are shrunk.
        quality: of the AVIF sheets with videos, 0 to 100.
        difference_quality: of the AVIF sheets with differences from the reference.
        title: of the page.
        note: a paragraph below the title, Markdown.

    Raises:
        UserError: if runs do not belong together, lack samples, or an argument is out of range.
    """
    _check_numbers(prompts=(prompts, 1, None), edge=(edge, 16, None))
    _check_numbers(quality=(quality, 0, 100), difference_quality=(difference_quality, 0, 100))
    reference = _reference(runs)
    scores = {row.signature: _scores(Path(row.folder)) for row in runs.itertuples()}
    chosen = _chosen(scores, reference.signature, prompts)
    sections = {name: markdown.to_html(text) for name, text in _markdown(tables).items()}
    if folder.exists() and not _is_gallery(folder):
        raise UserError(f"folder {folder} holds something else; an older gallery or no folder is allowed")
    with complete_folder_or_nothing(folder) as partial:
        sheets = Sheets(partial, folder)
        facts = _write_media(runs, chosen, sheets, edge, quality, difference_quality)
        sheets.finish()
        facts["fps"] = media.frames_per_second(video_path(Path(reference.folder), chosen[0]))
        content = facts | content_of(runs, scores, chosen, metrics)
        page = html_page(content, sections, title, markdown.to_html(note))
        (partial / "index.html").write_text(page, encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    log.info("gallery: %d runs, %d prompts, %.1f MB written to %s", len(runs), len(chosen), size / 1e6, folder)


def _check_numbers(**ranges: tuple[int, int, int | None]) -> None:
    for name, (value, low, high) in ranges.items():
        if value < low or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"{low} to {high}"
            raise UserError(f"{name} is {value}; {allowed} is allowed")


def _reference(runs: pd.DataFrame) -> pd.Series:
    """The row that is the reference of all rows, which also come from one model and one set of prompts."""
    missing = [field for field in FIELDS if field not in runs.columns]
    if missing:
        raise UserError(f"runs lacks the columns {missing}; rows of vdq.tracking.runs() are allowed")
    for field in ("model", "dataset", "reference"):
        if runs[field].nunique() != 1:
            found = sorted(map(str, runs[field].unique()))
            raise UserError(f"runs has the {field} values {found}; exactly one is allowed in a gallery")
    rows = runs[runs["signature"] == runs["reference"]]
    if len(rows) != 1 or runs["signature"].duplicated().any():
        raise UserError(f"runs holds {len(rows)} reference rows; one row a run and exactly one reference is allowed")
    return rows.iloc[0]


def _scores(folder: Path) -> pd.DataFrame:
    """The scores of a run: one row a prompt, with its text and its values. Raises UserError where there are none."""
    path = folder / "per_video.csv"
    if not path.is_file():
        raise UserError(f"runs holds {folder.name}, which has no {path.name}; only runs that were scored are allowed")
    return pd.read_csv(path, index_col="index")


def _chosen(scores: Mapping[str, pd.DataFrame], reference: str, count: int) -> list[int]:
    """Prompts evenly spaced over those that every run has."""
    prompts = scores[reference]["prompt"]
    common = [i for i in prompts.index if all(i in s.index and s["prompt"][i] == prompts[i] for s in scores.values())]
    if not common:
        raise UserError("runs have no prompt in common; runs of the same prompts are allowed")
    places = np.linspace(0, len(common) - 1, min(count, len(common))).round().astype(int)
    return [int(common[place]) for place in places]


def _markdown(tables: Mapping[str, str] | Sequence[Path]) -> dict[str, str]:
    """Title -> Markdown; the title of a file is its first heading, or its name."""
    if isinstance(tables, Mapping):
        return dict(tables)
    texts = {}
    for path in map(Path, tables):
        if not path.is_file():
            raise UserError(f"tables holds {path.name}, which does not exist; existing Markdown files are allowed")
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        if first.startswith("#"):
            texts[first.lstrip("#").strip()] = rest
        else:
            texts[path.stem] = f"{first}\n{rest}"
    return texts


def _is_gallery(folder: Path) -> bool:
    page = folder / "index.html"
    return folder.is_dir() and (not any(folder.iterdir()) or page.is_file() and MARK in page.read_text("utf-8"))


def _write_media(
    runs: pd.DataFrame, chosen: list[int], sheets: Sheets, edge: int, quality: int, difference_quality: int
) -> dict:
    """Sheets of every video and of its difference from the reference; returns their layout and the codec's error."""
    errors: dict[str, list[float]] = {"video": [], "difference": []}
    reference = _reference(runs)
    shape = None
    for index in chosen:
        original = _frames(Path(reference.folder), index)
        shape = shape or original.shape
        for run in runs.itertuples():
            frames = original if run.signature == reference.signature else _frames(Path(run.folder), index)
            if not frames.shape == original.shape == shape:
                raise UserError(f"runs holds {run.signature} with frames {frames.shape}; only {shape} is allowed")
            small = media.shrink(frames, edge)
            name = f"{run.signature}_{index:04d}"
            errors["video"].append(sheets.write(f"{name}_video.avif", media.video_sheet, small, quality=quality))
            if run.signature != reference.signature:
                error = sheets.write(
                    f"{name}_difference.avif",
                    media.difference_sheet,
                    frames,
                    original,
                    edge=edge,
                    quality=difference_quality,
                )
                errors["difference"].append(error)
    error = {kind: math.sqrt(np.mean(values)) if values else 0.0 for kind, values in errors.items()}
    return {
        "frames": shape[0],
        "columns": media.columns_of(shape[0]),
        "source": [shape[2], shape[1]],
        "tile": [small.shape[2], small.shape[1]],
        "error": error,
        "quality": {"video": quality, "difference": difference_quality},
    }


def _frames(folder: Path, index: int) -> np.ndarray:
    try:
        return read_sample(folder, index)["frames"].numpy()
    except (OSError, KeyError) as error:
        message = f"runs holds {folder.name} without the frames of prompt {index}; complete runs are allowed"
        raise UserError(message) from error
