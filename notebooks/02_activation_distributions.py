# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Distributions of activations
#
# A static quantizer fixes the range of every activation before the model runs. Three things make that hard.
#
# 1. Input channels of one layer differ in size. One range for the whole tensor must hold the largest of them, and the
#    small ones then get few codes.
# 2. Ranges change from one denoising step to the next. A range that is fixed for all steps must hold the widest one.
# 3. Nothing is measured at run time. Values beyond what calibration saw are clamped.
#
# Smoothing answers the first (X / s and W * s, the paper's Eq. 2), time ranges the second.
#
# The pictures are of the testbed. They say nothing about how Open-Sora's activations are distributed.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from IPython.display import display

from vdq.quant.layers import projections
from vdq.quant.smoothing import aggregate_absmax, smoothed_range, smoothing_factors
from vdq.quant.stats import Stats
from vdq.quant.time_ranges import TimeRanges
from vdq.stages import calibrate
from vdq.stages.configuration import CONF
from vdq.stages.experiment import Experiment

# %% [markdown]
# Parameters. The tests set them through the environment. `LAYER` is any of the names that are printed further down.

# %% tags=["parameters"]
RUNS = Path(os.environ.get("VDQ_NOTEBOOK_RUNS", CONF.parent / "runs"))
STEPS = int(os.environ.get("VDQ_NOTEBOOK_STEPS", 20))
MORE = os.environ.get("VDQ_NOTEBOOK_OVERRIDES", "").split()  # further overrides, as on the command line
LAYER = "blocks.0.attn_temp.q"
ALPHA = 0.5

# %% [markdown]
# ## Statistics
#
# Calibration runs the full-precision model on the calibration prompts, or finds that it was done. It keeps for each
# layer input, step and channel the minimum, the maximum and the averaged absolute maximum. That is enough for every
# method.

# %%
with initialize_config_dir(str(CONF), version_base="1.3"):
    cfg = compose("config", overrides=["quant=asq", f"sampler.steps={STEPS}", f"paths.runs='{RUNS}'", *MORE])
experiment = Experiment(cfg)
calibrate.run(experiment)
stats = Stats.load(experiment.files.stats)
print(f"{stats.num_prompts} prompts, {stats.num_steps} steps, {len(stats.layers)} layer inputs")

# %%
weights = {p.fqn: p for p in projections(experiment.model.denoiser) if experiment.model.quantizable(p.fqn)}
print(*weights, sep="\n")

# %% [markdown]
# ## One layer, before and after smoothing
#
# ASQ has one set of factors for all steps, TSQ one for each step.

# %%
projection = weights[LAYER]
layer = stats.layers[projection.input_fqn]  # q, k and v are one linear and share their input
weight_absmax = projection.weight.abs().amax(0)  # [channels]
factors = {"before": torch.ones_like(layer.min)}  # [steps, channels]
for title, count in {"ASQ": 1, "TSQ": "per_step"}.items():
    ranges = TimeRanges(stats.num_steps, count)
    act_absmax = aggregate_absmax(layer.absmax, ranges)
    factors[title] = smoothing_factors(act_absmax, weight_absmax, alpha=ALPHA)[ranges.index]

# %% [markdown]
# **Over channels.** Each band is one step, from the minimum to the maximum of every channel, channels sorted by size.
# Dashed is the range of the whole tensor over all steps, which is what one fixed range has to hold.

# %%
shown = sorted({0, stats.num_steps // 2, stats.num_steps - 1})
figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
for (title, s), axis in zip(factors.items(), axes, strict=True):
    low, high = layer.min / s, layer.max / s
    order = (high - low).amax(0).argsort(descending=True)
    for step in shown:
        axis.fill_between(range(len(order)), low[step, order], high[step, order], alpha=0.4, label=f"step {step}")
    for bound in (low.min(), high.max()):
        axis.axhline(bound.item(), color="black", ls="--", lw=0.8)
    axis.set(title=f"{LAYER}\n{title}", xlabel="input channel, by size")
axes[0].set_ylabel("range of x, or of x / s")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# **Over channels and steps.** The averaged maximum, which the factors are made of, relative to the largest one.
# Smoothing moves a part of the differences into the weights: of an activation maximum A, A^(1 - alpha) stays. ASQ's
# factors are the same at every step, so what changes from step to step stays as it is.

# %%
order = layer.absmax.mean(0).argsort(descending=True)
figure, axes = plt.subplots(1, 3, figsize=(13, 3.2), layout="constrained")
for (title, s), axis in zip(factors.items(), axes, strict=True):
    size = (layer.absmax / s)[:, order]
    image = axis.imshow((size / size.max()).log10(), vmin=-1.5, vmax=0, aspect="auto", interpolation="nearest")
    axis.set(title=title, xlabel="input channel, by size before", ylabel="denoising step")
figure.colorbar(image, ax=axes, label="log10 of max |x| / largest", extend="min")
plt.show()

# %% [markdown]
# **Over steps.** The range of the whole tensor, relative to the widest one. A method with one activation range (ASQ)
# leaves codes unused where the curve is low. A method with a range for each step (TSQ + TSW) uses all of them at every
# step.

# %%
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
rows = []
for title, s in factors.items():
    low, high = smoothed_range(layer.min, layer.max, s)
    width, channels = high - low, (layer.absmax / s).mean(0)
    axis.plot(width / width.max(), marker="o", ms=3, label=title)
    spread = (width.max() / width.min()).item()
    rows.append([title, spread, (channels.max() / channels.median()).item()])
axis.set(xlabel="denoising step", ylabel="width of the range / widest", ylim=(0, 1.05))
axis.legend(frameon=False)
plt.show()
display(pd.DataFrame(rows, columns=[LAYER, "widest / narrowest step", "largest / median channel"]).round(2))

# %% [markdown]
# ## Growth over the steps
#
# Inputs of the temporal attention and of the queries of cross-attention in every block: width of the tensor's range at
# each step over that of the first step. Above 1, the range grows while the noise goes.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
for ending, axis in zip((".attn_temp.qkv", ".cross_attn.q_linear"), axes, strict=True):
    for number, fqn in enumerate(sorted(fqn for fqn in stats.layers if fqn.endswith(ending))):
        low, high = smoothed_range(stats.layers[fqn].min, stats.layers[fqn].max, None)
        axis.plot((high - low) / (high - low)[0], label=f"block {number}")
    axis.axhline(1, color="black", ls="--", lw=0.8)
    axis.set(title=f"blocks.*{ending}", xlabel="denoising step")
axes[0].set_ylabel("width of the range / first step")
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Which layers change most over the steps:

# %%
spread = {}
for fqn, each in stats.layers.items():
    low, high = smoothed_range(each.min, each.max, None)
    spread[fqn] = ((high - low).max() / (high - low).min()).item()
display(pd.Series(spread, name="widest / narrowest step").nlargest(10).round(2).to_frame())
