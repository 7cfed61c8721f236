"""The paper's figures 1, 2 and 4: frames of one prompt, a row for each method and bit-width."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vdq.data.contact_sheet import contact_sheet
from vdq.data.samples import read_sample

FRAMES = 8


class Figure(NamedTuple):
    """Which runs a figure shows: ``rows`` are labels with method and bits, ``prompt`` is the number of the prompt."""

    prompt: int
    rows: list[tuple[str, tuple[str, int, int]]]


def _rows(methods: list[str], bits: list[tuple[int, int]]) -> list[tuple[str, tuple[str, int, int]]]:
    quantized = [(f"{method} w{w}a{a}", (method, w, a)) for w, a in bits for method in methods]
    return [("full precision", ("fp16", 16, 16)), *quantized]


FIGURES = {
    "figure1": Figure(14, _rows(["dynamic", "asq", "tsq_tsw"], [(8, 8), (6, 8), (4, 8)])),
    "figure2": Figure(0, _rows(["dynamic", "cw_tw", "tsw", "asq", "tsq_tsw"], [(8, 8)])),
    "figure4": Figure(11, _rows(["dynamic", "asq", "tsq_tsw"], [(8, 8), (6, 6), (4, 8), (4, 4)])),
}


def frames_figure(rows: list[tuple[str, Path]], index: int, prompt: str, path: Path) -> None:
    """Writes a PNG: frames evenly spaced in time of prompt ``index``, one row for each label and run folder."""
    samples = [read_sample(folder, index)["frames"] for _, folder in rows]
    captions = [label if number else f"{label}: {prompt}" for number, (label, _) in enumerate(rows)]
    contact_sheet(samples, captions, FRAMES, path)
