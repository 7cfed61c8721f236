"""Chooses the smoothing strength alpha from a grid of runs, and shows the grid as tables and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import ttest_rel

from vdq.metrics.catalogue import Value
from vdq.reports.pictures import panels, save
from vdq.reports.text import markdown

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# The methods that are searched; the file of any other in conf/quant names the one whose alpha it takes.
METHODS = ("asq", "tsq_tsw")
WIDTHS = ("w8a8", "w6a6", "w4a8")
SIGNIFICANCE = 0.05


def best(grid: pd.DataFrame, metric: str = "clipsim") -> dict[str, float]:
    """For each method the alpha with the highest mean of the metric over the bit-widths; the smaller one of equals."""
    means = _means(grid, metric).reset_index()
    ordered = means.sort_values(["quant", metric, "alpha"], ascending=[True, False, True])
    return ordered.groupby("quant")["alpha"].first().to_dict()


def tied(grid: pd.DataFrame) -> dict[str, list[float]]:
    """For each method the alphas that CLIPSIM does not separate from the best: a paired t-test over prompts, each
    prompt's score being its mean over the bit-widths, finds no difference at 5 %. Column `scores` of the grid holds a
    list of CLIPSIM, one a prompt.
    """
    groups = {}
    for quant, top in best(grid).items():
        runs = grid[grid["quant"] == quant]
        prompts = {alpha: pd.DataFrame(rows["scores"].tolist()).mean() for alpha, rows in runs.groupby("alpha")}
        groups[quant] = [
            alpha
            for alpha, scores in prompts.items()
            if scores.equals(prompts[top]) or ttest_rel(prompts[top], scores).pvalue > SIGNIFICANCE
        ]
    return groups


def choose(grid: pd.DataFrame) -> dict[str, float]:
    """For each method the alpha with the highest PSNR among those that CLIPSIM does not separate from its best."""
    means, ties = _means(grid, "psnr"), tied(grid)
    return {quant: means[quant][alphas].idxmax() for quant, alphas in ties.items()}


def _means(grid: pd.DataFrame, metric: str) -> pd.Series:
    """The mean of a metric over the bit-widths, by quant and alpha."""
    return grid.groupby(["quant", "alpha"])[metric].mean()


def pivot(grid: pd.DataFrame, metric: str) -> str:
    """A Markdown table with a row for each method and bit-width and a column for each alpha; the best is bold."""
    table = grid.pivot_table(index=["quant", "bits"], columns="alpha", values=metric)
    shown = table.map(lambda value: f"{value:.4g}").astype(object)
    for row, column in table.idxmax(axis=1).items():
        shown.at[row, column] = f"**{shown.at[row, column]}**"
    return markdown(shown.reset_index())


def curves(grid: pd.DataFrame, values: Sequence[Value], path: Path) -> None:
    """Writes a PNG: one plot for each value, one line for each method and bit-width."""
    figure, axes = panels(1, len(values), (5 * len(values), 3.5))
    for value, axis in zip(values, axes[0], strict=True):
        for (quant, bits), rows in grid.groupby(["quant", "bits"]):
            ordered = rows.sort_values("alpha")
            axis.plot(ordered["alpha"], ordered[value.name], marker="o", ms=3, label=f"{quant} {bits}")
        axis.set(xlabel="alpha", title=value.axis)
    axes[0][0].legend(frameon=False, fontsize=8)
    save(figure, path)
