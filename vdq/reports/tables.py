"""Comparison tables of runs: Markdown for people, CSV for programs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vdq.files import write_text
from vdq.metrics.catalogue import values_of
from vdq.reports.text import MISSING, markdown
from vdq.tracking.registry import processor_of, processors_note
from vdq.tracking.versions import versions_note

BEFORE = {"quant": "method", "bits": "bits", "kind": "activations", "backend": "integers by", "changed": "changed"}
AFTER = {"size_mb": "MB", "size_mb_fp16": "MB of the model in fp16", "signature": "run"}
DIGITS = 2  # of sizes


def comparison(table: pd.DataFrame) -> str:
    """Markdown with one row a run: what it is, the metrics of all runs ('–' where one does not apply), its size; below
    it their processor, which is a column if there are several.
    """
    values = values_of(row for _, row in table.iterrows())
    headings = {name: value.heading for name, value in values.items()}
    shown = pd.DataFrame(index=table.index)
    for field, title in (BEFORE | headings | AFTER).items():
        if field in table and (table[field].notna() & (table[field] != "")).any():
            text = values[field].text if field in values else _cell
            shown[title] = [text(cell) for cell in table[field]]
    if "run" in shown:
        shown["run"] = [f"`{run}`" for run in shown["run"]]
    processors = pd.Series([processor_of(run) for _, run in table.iterrows()], index=table.index, dtype=object)
    if processors.nunique() > 1:
        shown["processor"] = processors
    notes = filter(None, (processors_note(processors), versions_note(table)))
    return "\n\n".join((markdown(shown), *notes))


def write(table: pd.DataFrame, path: Path, heading: str) -> None:
    """``path``.md with the heading and the comparison, ``path``.csv with every plain field of the registry."""
    write_text(path.with_suffix(".md"), f"{heading}\n\n{comparison(table)}\n")
    plain = table.drop(columns=["folder", "assets", "described", "higher_is_better", "versions"], errors="ignore")
    write_text(path.with_suffix(".csv"), plain.to_csv(index=False))


def _cell(value: object) -> str:
    if pd.isna(value):
        return MISSING
    return f"{value:.{DIGITS}f}" if isinstance(value, float) else str(value)
