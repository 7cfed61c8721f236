"""Comparison tables of runs: Markdown for people, CSV for programs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vdq.files import write_text

COLUMNS = {
    "quant": "method",
    "bits": "bits",
    "kind": "activations",
    "clipsim": "CLIPSIM ↑",
    "clip_temp": "CLIP-temp ↑",
    "top1": "top-1 ↑",
    "psnr": "PSNR dB ↑",
    "ssim": "SSIM ↑",
    "latent_rel_l2": "latent L2 ↓",
    "size_mb": "MB",
    "signature": "run",
}
DIGITS = {"clipsim": 4, "clip_temp": 4, "top1": 3, "psnr": 2, "ssim": 4, "latent_rel_l2": 4, "size_mb": 2}


def comparison(table: pd.DataFrame) -> str:
    """Markdown with one row a run, the columns of ``COLUMNS`` that occur, '–' where a value does not apply."""
    shown = pd.DataFrame(index=table.index)
    for field, title in COLUMNS.items():
        if field in table and table[field].notna().any():
            shown[title] = [_cell(field, value) for value in table[field]]
    return shown.to_markdown(index=False, disable_numparse=True)


def write(table: pd.DataFrame, path: Path, heading: str) -> None:
    """``path``.md with the heading and the comparison, ``path``.csv with every field of the registry."""
    write_text(path.with_suffix(".md"), f"{heading}\n\n{comparison(table)}\n")
    write_text(path.with_suffix(".csv"), table.drop(columns="folder", errors="ignore").to_csv(index=False))


def _cell(field: str, value: object) -> str:
    if pd.isna(value):
        return "–"
    if field == "signature":
        return f"`{value}`"
    return f"{value:.{DIGITS[field]}f}" if field in DIGITS else str(value)
