"""Tables of text as Markdown and LaTeX."""

from __future__ import annotations

import pandas as pd
from tabulate import tabulate

MISSING = "–"
TEX = {"`": "", MISSING: "--", "_": r"\_", "%": r"\%"}
TEX_TITLES = {"↑": r"$\uparrow$", "Δ": r"$\Delta$"}


def markdown(cells: pd.DataFrame) -> str:
    """A pipe table; cells are printed as they are."""
    return cells.to_markdown(index=False, disable_numparse=True)


def latex(cells: pd.DataFrame) -> str:
    """A tabular; cells and titles may hold commands of LaTeX."""
    shown = cells.map(lambda text: _replaced(text, TEX))
    shown.columns = [_replaced(title, TEX_TITLES) for title in shown.columns]
    return tabulate(shown, headers="keys", tablefmt="latex_raw", showindex=False, disable_numparse=True)


def latex_comment(notes: str) -> str:
    """Markdown notes as lines that LaTeX passes over."""
    return "% " + notes.replace("*", "").replace("\n", "\n% ")


def number(value: float | None, form: str, missing: str = MISSING) -> str:
    """A number in a format such as ".2f", or the sign for one that is not there."""
    return missing if pd.isna(value) else f"{value:{form}}"


def _replaced(text: str, replacements: dict[str, str]) -> str:
    for found, other in replacements.items():
        text = text.replace(found, other)
    return text
