"""Figures of what quality costs: a line a method, circles where it is static, triangles where it is dynamic."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from vdq.metrics.catalogue import PSNR
from vdq.reports.pictures import panels, save

MARKERS = {"static": "o", "dynamic": "^"}
FULL = "full precision"
OPERATIONS = "10^9 bit operations of a call: multiply-adds x bits x bits,\nfloats counted as 16 x 16 bits"


def quality_figure(table: pd.DataFrame, path: Path) -> None:
    """Writes a PNG: PSNR against mean activation bits, a panel for each number of `weight_bits`."""
    rows = table.dropna(subset="psnr")
    widths = sorted(rows["weight_bits"].unique(), reverse=True)
    colours = colours_of(rows)
    figure, axes = panels(1, len(widths), (3.6 * len(widths) + 1.5, 4.2), sharey=True)
    for axis, width in zip(axes[0], widths, strict=True):
        lines(axis, rows[rows["weight_bits"] == width], "mean_act_bits", colours)
        axis.set(title=f"{width}-bit weights", xlabel="mean activation bits")
    axes[0][0].set_ylabel(PSNR.axis)
    legend(figure, rows, colours)
    save(figure, path)


def cost_figure(table: pd.DataFrame, path: Path) -> None:
    """Writes a PNG: PSNR against bytes and against bit operations (vdq.reports.costs), at all bit-widths; dashed is
    the model itself. Rows of runs that did not record their operations are left out.
    """
    rows, full = (table.dropna(subset=[column, "bit_tops"]) for column in ("psnr", "size_mb_fp16"))
    figure, axes = panels(1, 2, (11, 4.6), sharey=True)
    colours = colours_of(rows)
    lines(axes[0][0], rows, "size_mb", colours)
    lines(axes[0][1], rows.assign(gops=1000 * rows["bit_tops"].astype(float)), "gops", colours)
    _logarithmic(axes[0][0], "MB of the quantized denoiser")
    _logarithmic(axes[0][1], OPERATIONS)
    for _, row in full[full["kind"] == FULL].head(1).iterrows():
        _mark(axes[0][0], row["size_mb"], "the model in fp32")
        _mark(axes[0][0], row["size_mb_fp16"], "in fp16")
        _mark(axes[0][1], 1000 * row["bit_tops"], "in fp16")
    axes[0][0].set_ylabel(PSNR.axis)
    legend(figure, rows, colours)
    save(figure, path)


def _logarithmic(axis: Axes, label: str) -> None:
    axis.set(xscale="log")
    axis.set_xlabel(label, fontsize=9)
    axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter="")


def _mark(axis: Axes, x: float, name: str) -> None:
    axis.axvline(x, color="0.5", ls="--", lw=0.8)
    axis.annotate(name, (x, 1), xycoords=("data", "axes fraction"), fontsize=8, ha="right", va="top", rotation=90)


def colours_of(rows: pd.DataFrame) -> dict[str, object]:
    """A colour for each method."""
    more = colormaps["Dark2"]
    return {method: f"C{i}" if i < 10 else more(i - 10) for i, method in enumerate(sorted(set(rows["method"])))}


def lines(axis: Axes, rows: pd.DataFrame, x: str, colours: dict[str, object]) -> None:
    """Draws PSNR against a column, a line for each method."""
    for method, line in rows.sort_values([x, "psnr"]).groupby("method"):
        axis.plot(line[x], line["psnr"], marker=_marker(line), ms=5, lw=0.8, color=colours[method])
    axis.grid(alpha=0.3)


def legend(figure: Figure, rows: pd.DataFrame, colours: dict[str, object]) -> None:
    markers = {method: _marker(line) for method, line in rows.groupby("method")}
    handles = [Line2D([], [], color=colours[name], marker=markers[name], label=name) for name in colours]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)


def _marker(rows: pd.DataFrame) -> str:
    return MARKERS["static" if (rows["kind"] == "static").all() else "dynamic"]
