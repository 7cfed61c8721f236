"""Cells of a metric: the mean, a mark where it is the best, and its interval."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from vdq.metrics.catalogue import Value
from vdq.reports.uncertainty import BEST, TIED

Marks = dict[str, Callable[[str], str]]
MARKDOWN: Marks = {BEST: lambda text: f"**{text}**", TIED: lambda text: f"{text}="}
LATEX: Marks = {BEST: lambda text: rf"\textbf{{{text}}}", TIED: lambda text: f"{text}$^=$"}


def column(table: pd.DataFrame, value: Value, marks: Marks) -> list[str]:
    """A cell a row: the mean with its mark, and the interval in brackets where there is one."""
    return [marked(row, value, marks) + bracketed(row, value) for _, row in table.iterrows()]


def marked(row: pd.Series, value: Value, marks: Marks) -> str:
    """The mean with the mark of `<name>_mark`, or a dash."""
    text, mark = value.text(row[value.name]), row[f"{value.name}_mark"]
    return marks[mark](text) if mark else text


def bracketed(row: pd.Series, value: Value) -> str:
    """The interval of `<name>_low` and `_high`, signed where it is that of a difference; empty if there is none."""
    low, high = row.get(f"{value.name}_low"), row.get(f"{value.name}_high")
    if low is None or pd.isna(low):
        return ""
    sign = "" if value.fidelity or value.share else "+"
    return f" [{value.text(low, sign)}, {value.text(high, sign)}]"
