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
# # Bring your own method
#
# A method is a class. A configuration names it in `_target_`, and that may be a class of this notebook. Nothing in vdq
# changes.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from hydra import compose, initialize_config_dir
from IPython.display import Markdown, display
from omegaconf import OmegaConf

from vdq.commands.run import run
from vdq.methods.static import StaticMethod
from vdq.metrics.catalogue import value_named
from vdq.reports.tables import comparison
from vdq.stages.configuration import CONF
from vdq.tracking.registry import read_result

# %% [markdown]
# Parameters. The tests set them through the environment.

# %% tags=["parameters"]
RUNS = Path(os.environ.get("VDQ_NOTEBOOK_RUNS", CONF.parent / "runs"))
PROMPTS = int(os.environ.get("VDQ_NOTEBOOK_PROMPTS", 2))
STEPS = int(os.environ.get("VDQ_NOTEBOOK_STEPS", 20))
MORE = os.environ.get("VDQ_NOTEBOOK_OVERRIDES", "").split()  # further overrides, as on the command line
BITS = "w6a6"
SHARES = (1.0, 0.8, 0.6, 0.4)

# %% [markdown]
# ## The method
#
# ASQ gives each activation the range from the smallest to the largest value that calibration saw. A few large values
# then decide how coarse the codes are. Here only a share of that range is kept: values outside are clamped, all others
# get finer codes. The hook `act` makes the activation quantizer from the range of every step; all else is ASQ's.


# %%
class ClampedMethod(StaticMethod):
    """Static quantization whose activation ranges are a share, above 0 to 1, of the calibrated ones."""

    def __init__(self, *, share: float = 1.0, **options) -> None:
        super().__init__(**options)
        if not 0 < share <= 1:
            raise ValueError(f"share={share} must be above 0 and at most 1")
        self.share = share

    def act(self, lo, hi, *, steps):
        return super().act(lo * self.share, hi * self.share, steps=steps)


# %% [markdown]
# ## Running it
#
# The configuration is that of ASQ with another class and one more field. `share` behaves as any field: it is part of
# the run's signature, and a wrong value is refused before a model is built.
#
# A signature covers the fields of a method, not its code. While the code still changes, `force=true` computes the run
# again.

# %%
base = [
    "quant=asq",
    f"bits={BITS}",
    f"dataset.num_prompts={PROMPTS}",
    f"sampler.steps={STEPS}",
    f"paths.runs='{RUNS}'",
    "logger=csv",  # no W&B from a notebook
    *MORE,
]
own = ["quant.name=clamped", f"quant._target_={ClampedMethod.__module__}.{ClampedMethod.__name__}", "force=true"]
jobs = {"fp16": ["quant=fp16"], "asq": []} | {f"{share:g}": [*own, f"+quant.share={share}"] for share in SHARES}
results = {}
for label, overrides in jobs.items():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*base, *overrides])
    results[label] = read_result(RUNS / run(cfg))

# %% [markdown]
# ## The result
#
# A share of 1 is ASQ and must give its numbers. Two prompts show that it runs, not which share is best: that takes all
# prompts, and shares should be chosen on other prompts than those they are judged by.

# %%
table = pd.DataFrame(results.values()).assign(changed=["", "", *(f"share={share:g}" for share in SHARES)])
display(Markdown(comparison(table)))

# %%
metric = "latent_rel_l2"
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
axis.plot(SHARES, [results[f"{share:g}"][metric] for share in SHARES], marker="o", label="clamped")
axis.axhline(results["asq"][metric], color="black", ls="--", lw=0.8, label="asq")
axis.set(xlabel="share of the calibrated range", ylabel=f"{value_named(metric).axis}, lower is better")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Keeping it
#
# The class becomes `vdq/methods/clamped.py`. These lines become `conf/quant/clamped.yaml`, with the new place of the
# class as `_target_` and a number as `alpha`. Then `python run.py -m quant=clamped quant.share=0.6,0.8,1.0` is a sweep,
# and the tests find the new file by themselves.

# %%
print(OmegaConf.to_yaml(cfg.quant))
