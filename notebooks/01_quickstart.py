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
# # Quickstart
#
# One run from a prompt to a score: calibrate, quantize, sample, evaluate. It is what
# `python run.py quant=tsq_tsw bits=w6a8 dataset.num_prompts=2` does, in this process.
#
# Two prompts are a look at the pipeline and no result. With `PROMPTS = None` it is the run of `make run`; if that is
# finished, nothing is computed and the notebook shows it.

# %%
import os
import tempfile
from pathlib import Path

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from IPython.display import Image, Markdown, Video, display

from vdq.commands.run import run
from vdq.data.contact_sheet import contact_sheet
from vdq.data.samples import read_sample
from vdq.data.video import write_mp4
from vdq.reports.tables import comparison
from vdq.stages.configuration import CONF
from vdq.stages.experiment import Experiment
from vdq.tracking import runs

# %% [markdown]
# Parameters. The tests set them through the environment.

# %% tags=["parameters"]
RUNS = Path(os.environ.get("VDQ_NOTEBOOK_RUNS", CONF.parent / "runs"))
PROMPTS = int(os.environ.get("VDQ_NOTEBOOK_PROMPTS", 2))  # None: all
STEPS = int(os.environ.get("VDQ_NOTEBOOK_STEPS", 20))
MORE = os.environ.get("VDQ_NOTEBOOK_OVERRIDES", "").split()  # further overrides, as on the command line
QUANT, BITS = "tsq_tsw", "w6a8"

# %% [markdown]
# ## The configuration
#
# Overrides are those of the command line. Everything below `quant` is an argument of the method's class, `_target_`.

# %%
overrides = [
    f"quant={QUANT}",
    f"bits={BITS}",
    f"dataset.num_prompts={'null' if PROMPTS is None else PROMPTS}",
    f"sampler.steps={STEPS}",
    f"paths.runs='{RUNS}'",
    "logger=csv",  # no W&B from a notebook
    *MORE,
]
with initialize_config_dir(str(CONF), version_base="1.3"):
    cfg = compose("config", overrides=overrides)
display(pd.Series(dict(cfg.quant), name="quant").to_frame())

# %% [markdown]
# ## The run
#
# A finished run is found by its signature and not computed twice. The full-precision videos of the same prompts and
# noise are a run of their own, the reference.

# %%
name = run(cfg)
experiment = Experiment(cfg)  # the same configuration as objects: folders, prompts, model
print(name == experiment.folder.name, [path.name for path in sorted(experiment.folder.iterdir())])

# %% [markdown]
# ## The result
#
# CLIPSIM, CLIP-temp and top-1 come from the testbed's own small CLIP: they are not the paper's numbers. PSNR, SSIM and
# the latents' distance are to the reference.

# %%
pair = [experiment.reference.identity.signature, experiment.identity.signature]
registry = runs(RUNS)
display(Markdown(comparison(registry[registry["signature"].isin(pair)])))

# %%
display(pd.read_csv(experiment.folder / "per_video.csv"))

# %% [markdown]
# ## The videos
#
# Eight of the 16 frames. The upper row of a pair is full precision, the lower one is quantized.

# %%
prompts = experiment.prompts.evaluation[:4]
folders = {"full precision": experiment.reference.folder, f"{QUANT} {BITS}": experiment.folder}
frames = {
    (number, label): read_sample(folder, number)["frames"]
    for number in range(len(prompts))
    for label, folder in folders.items()
}
with tempfile.TemporaryDirectory() as folder:
    captions = [f"{label}: {prompts[number]}" for number, label in frames]
    contact_sheet(list(frames.values()), captions, 8, Path(folder, "sheet.png"))
    display(Image(filename=Path(folder, "sheet.png")))

# %% [markdown]
# The same as a video: full precision left, quantized right, one prompt below the other.

# %%
rows = [torch.cat([frames[number, label] for label in folders], dim=2) for number in range(len(prompts))]
with tempfile.TemporaryDirectory() as folder:
    write_mp4(Path(folder, "pair.mp4"), torch.cat(rows, dim=1), experiment.model.fps)
    display(Video(Path(folder, "pair.mp4"), embed=True, width=384, html_attributes="controls loop autoplay muted"))

# %% [markdown]
# ## The layers
#
# `report.csv` has a line for every layer, also for those that stay in full precision, with the reason. `weight_error`
# is the relative error of the quantized weight. `act_range_spread` is the widest step's activation range over the
# narrowest one, after smoothing.

# %%
report = pd.read_csv(experiment.folder / "report.csv")
display(report.groupby(["kind", report["reason"].fillna("")]).size().rename("layers").to_frame())
columns = ["fqn", "shape", "weight_bits", "act_bits", "weight_ranges", "act_ranges", "weight_error", "act_range_spread"]
display(report.nlargest(10, "weight_error")[columns])
