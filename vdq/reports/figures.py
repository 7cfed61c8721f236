"""The paper's figure 3, ranges of activations and weights before and after smoothing, and a figure of activation bits
that were chosen while sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vdq.quant.layers import Projection
from vdq.quant.smoothing import aggregate_absmax, smoothing_factors
from vdq.quant.stats import Stats
from vdq.quant.time_ranges import TimeRanges
from vdq.reports.pictures import panels, save


def ranges_figure(stats: Stats, layers: Sequence[Projection], alpha: float, path: Path) -> None:
    """Writes the PNG of that one of the layers whose input varies most over the steps."""
    fqn = _widest(stats, layers)
    absmax = stats.layers[fqn].absmax.cpu()  # [steps, channels]
    parts = [p.weight.detach().float().abs().amax(0).cpu() for p in layers if p.input_fqn == fqn]
    weight = torch.stack(parts).amax(0)  # [channels]
    save(_draw(fqn, absmax, weight, alpha), path)


def bits_figure(schedules: list[dict[str, Any]], path: Path) -> None:
    """Writes the PNG of the bits (`act_bits`) of every video and step, their mean over the videos, and the relative
    `change` of the output after each step, which they were chosen by. Steps without bits stay empty.
    """
    rows = [[torch.nan if bits is None else bits for bits in schedule["act_bits"]] for schedule in schedules]
    bits = torch.tensor(rows, dtype=torch.float32)  # [videos, steps]
    quantized = bits[~bits.isnan()]
    change = torch.tensor([schedule["change"] for schedule in schedules])
    figure, columns = panels(3, 1, (8, 7), sharex=True, height_ratios=(2, 1, 1))
    axes = columns[:, 0]
    image = axes[0].imshow(bits.numpy(), aspect="auto", interpolation="nearest", cmap="viridis")
    figure.colorbar(image, ax=axes[0], label="activation bits", ticks=quantized.unique().int().tolist())
    axes[0].set(title=f"{quantized.mean():.2f} bits on average", ylabel="video")
    axes[0].yaxis.get_major_locator().set_params(integer=True)
    axes[1].plot(bits.mean(0).numpy(), drawstyle="steps-mid")
    axes[1].set(ylabel="mean bits")
    axes[2].plot(range(1, change.shape[1]), change[:, 1:].T.numpy(), color="tab:blue", alpha=0.3, lw=0.8)
    axes[2].set(xlabel="denoising step", ylabel="relative change", yscale="log")
    axes[2].xaxis.get_major_locator().set_params(integer=True)
    save(figure, path)


def _widest(stats: Stats, layers: Sequence[Projection]) -> str:
    """The layer input whose largest value changes by the largest factor from step to step."""

    def growth(fqn: str) -> float:
        largest = stats.layers[fqn].absmax.amax(1)
        return (largest.max() / largest.min().clamp(min=1e-6)).item()

    return max((p.input_fqn for p in layers), key=growth)


def _draw(fqn: str, absmax: Tensor, weight: Tensor, alpha: float) -> Figure:
    steps = len(absmax)
    factors = {
        "before smoothing": torch.ones(1, absmax.shape[1]),
        f"ASQ, alpha {alpha:g}": _factors(absmax, weight, alpha, TimeRanges(steps, 1)),
        f"TSQ, alpha {alpha:g}": _factors(absmax, weight, alpha, TimeRanges(steps, "per_step")),
    }
    order = absmax.mean(0).argsort(descending=True)
    figure, axes = panels(2, 3, (12, 6), height_ratios=(2, 1))
    for (title, s), above, below in zip(factors.items(), *axes, strict=True):
        image = above.imshow((absmax / s)[:, order].log10(), aspect="auto", interpolation="nearest", cmap="viridis")
        figure.colorbar(image, ax=above, label="log10 max |x|")
        above.set(title=title, xlabel="input channel, by size", ylabel="denoising step")
        below.plot((weight * s[0])[order], lw=0.8, label="weight, step 0")
        below.plot((weight * s[-1])[order], lw=0.8, label=f"weight, step {steps - 1}")
        below.set(xlabel="input channel, by size of the activation", ylabel="max |w|", yscale="log")
        below.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{fqn}: activations over steps and channels (above), weights (below)")
    return figure


def _factors(absmax: Tensor, weight: Tensor, alpha: float, ranges: TimeRanges) -> Tensor:
    """Smoothing factors for each step, [steps, channels] or [1, channels]."""
    return smoothing_factors(aggregate_absmax(absmax, ranges), weight, alpha=alpha)[ranges.index]
