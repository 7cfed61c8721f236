"""Figures as files, made without pyplot: its backend belongs to whoever shows figures, in a window or a notebook, and
this works without a display and in threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vdq.files import complete_or_nothing

DPI = 110


def panels(rows: int, columns: int, figsize: tuple[float, float], **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches and its axes [rows, columns]; options of Figure.subplots."""
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG."""
    with complete_or_nothing(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)
