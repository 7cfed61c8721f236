"""Comparison tables of runs: Markdown for people, CSV for programs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vdq.files import write_text
from vdq.tracking.registry import processor_of, processors_told
from vdq.tracking.versions import versions_told

BEFORE = {"quant": "method", "bits": "bits", "kind": "activations", "backend": "integers by", "changed": "changed"}
AFTER = {"size_mb": "MB", "size_mb_fp16": "MB of the model in fp16", "signature": "run"}
METRICS = {
    "clipsim": "CLIPSIM",
    "clip_temp": "CLIP-temp",
    "clipsim_evalcrafter": "CLIPSIM (EvalCrafter)",
    "clip_temp_evalcrafter": "CLIP-temp (EvalCrafter)",
    "clipsim_standard": "CLIPSIM (standard)",
    "clip_temp_standard": "CLIP-temp (standard)",
    "vqa_a": "VQA-a",
    "vqa_t": "VQA-t",
    "top1": "top-1",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "latent_rel_l2": "latent L2",
    "fvd": "FVD",
    "fvd_fp16": "FVD-FP16",
}
DIGITS = {"top1": 3, "psnr": 2, "vqa_a": 2, "vqa_t": 2, "fvd": 1, "fvd_fp16": 1, "size_mb": 2, "size_mb_fp16": 2}


def comparison(table: pd.DataFrame) -> str:
    """Markdown with one row a run: what it is, the metrics of all runs ('–' where one does not apply), its size; below
    it their processor, which is a column if there are several.
    """
    arrows = {key: up for row in table["higher_is_better"] for key, up in row.items()}
    metrics = {key: f"{METRICS.get(key, key)} {'↑' if up else '↓'}" for key, up in arrows.items()}
    shown = pd.DataFrame(index=table.index)
    for field, title in (BEFORE | metrics | AFTER).items():
        if field in table and (table[field].notna() & (table[field] != "")).any():
            shown[title] = [_cell(field, value) for value in table[field]]
    processors = pd.Series([processor_of(run) for _, run in table.iterrows()], index=table.index, dtype=object)
    if processors.nunique() > 1:
        shown["processor"] = processors
    notes = filter(None, (processors_told(processors), versions_told(table)))
    return "\n\n".join((shown.to_markdown(index=False, disable_numparse=True), *notes))


def write(table: pd.DataFrame, path: Path, heading: str) -> None:
    """``path``.md with the heading and the comparison, ``path``.csv with every plain field of the registry."""
    write_text(path.with_suffix(".md"), f"{heading}\n\n{comparison(table)}\n")
    plain = table.drop(columns=["folder", "assets", "higher_is_better", "versions"], errors="ignore")
    write_text(path.with_suffix(".csv"), plain.to_csv(index=False))


def _cell(field: str, value: object) -> str:
    if pd.isna(value):
        return "–"
    if field == "signature":
        return f"`{value}`"
    return f"{value:.{DIGITS.get(field, 4)}f}" if isinstance(value, float) else str(value)
