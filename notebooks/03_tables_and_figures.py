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
# # Tables and figures from finished runs
#
# Reads the registry and computes no run. With few runs the table has empty rows; `make tables` makes all of them.
#
# **Numbers of the testbed are not the paper's.** Its model is small, and its CLIP and DOVER are its own. They compare
# methods with each other. The paper's numbers appear beside ours only where all runs used its model and its metrics'
# networks.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.ticker import LogLocator

import vdq.tracking
from vdq.metrics.catalogue import value_named
from vdq.reports import paper_report, paper_tables
from vdq.reports.marks import MARKDOWN
from vdq.reports.tables import comparison
from vdq.reports.text import markdown
from vdq.reports.uncertainty import Noise
from vdq.stages.configuration import CONF

# %% [markdown]
# Parameters. The tests set them through the environment.

# %% tags=["parameters"]
RUNS = Path(os.environ.get("VDQ_NOTEBOOK_RUNS", CONF.parent / "runs"))
TABLE = "table1"  # or table2 to table5
METRIC = "psnr"  # of the plot: any metric of the registry

# %% [markdown]
# ## The registry
#
# One row for each run folder that is finished, with every field of its `result.json`.

# %%
registry = vdq.tracking.runs(RUNS)
print(f"{len(registry)} finished runs in {RUNS.name}/")
fields = ["quant", "bits", "model", "dataset", "num_prompts", "seed", "signature", "reference"]
display(registry.reindex(columns=fields).tail() if len(registry) else "Make one: python run.py, or notebook 01.")

# %% [markdown]
# Runs can be compared if they have the same reference (prompts, noise, steps, weights), the same metrics, and unchanged
# methods. Here is the group with the most prompts of the table's prompt set, with its full-precision run. The first set
# (`opensora`) is `shapes` on the testbed, the second (`ucf101`) is `shapes_short`.

# %%
sets = {"shapes": "opensora", "shapes_short": "ucf101"}
wanted = paper_tables.wanted(TABLE)["dataset"].iloc[0]
keys = ["reference", "metrics"]
group = known = registry
if len(registry):
    group = known = registry[(registry["changed"] == "") & (registry["dataset"].replace(sets) == wanted)]
if len(known):
    sizes = known.groupby(keys).agg(prompts=("num_prompts", "max"), runs=("signature", "size"))
    largest = sizes.sort_values(["prompts", "runs"]).index[-1]
    group = known[(known[keys] == list(largest)).all(axis=1)]
    group = group.sort_values(["weight_bits", "act_bits", "quant"], ascending=[False, False, True])
    display(Markdown(comparison(group)))

# %% [markdown]
# ## A table of the paper
#
# Rows are the paper's. Each is one run, or empty. In brackets is the 95 % interval of the difference to full precision,
# paired over prompts; with few prompts it is wide. The yardstick is full precision with the next seed. Bold is what
# beats every other model of its bit-width by more than chance, = marks ties.

# %%
display(pd.Series(paper_tables.TITLES, name="title").to_frame())

# %%
found = {(wanted, row["quant"], row["weight_bits"], row["act_bits"]): row for _, row in group.iterrows()}
for _, full in group[group["quant"] == "fp16"].iterrows() if len(group) else ():
    same = ["quant", "dataset", "num_prompts", "metrics"]
    other_noise = (known[same] == full[same].tolist()).all(axis=1) & (known["seed"] == full["seed"] + 1)
    for _, row in known[other_noise].iterrows():
        found[wanted, paper_tables.OTHER_NOISE, 16, 16] = row
noise = Noise.read(CONF.parent / "results" / (group["model"].iloc[0] if len(group) else "shapes"))
table = paper_tables.fill(TABLE, lambda *key: found.get(key), noise)
models = ", ".join(group["model"].unique()) if len(group) else "none"
display(Markdown(f"**{paper_tables.TITLES[TABLE]}.** Model of the runs: {models}."))
display(Markdown(markdown(paper_report.cells(table, MARKDOWN))))

# %% [markdown]
# What the paper says of this table, asked of these runs. The last column is the paper's own numbers, for the paper's
# own model.

# %%
display(paper_report.claims_of(TABLE, table, noise).style.hide(axis="index"))

# %% [markdown]
# ## Quality against bits
#
# Left is every method over the bit-widths that were run, right quality over the size of the model.

# %%
if len(group) and METRIC in group:
    quantized = group[(group["quant"] != "fp16") & group[METRIC].notna()]
    widths = quantized.sort_values(["weight_bits", "act_bits"])["bits"].unique().tolist()
    full = group.loc[group["quant"] == "fp16", METRIC].dropna()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", sharey=True)
    for quant, rows in quantized.groupby("quant"):
        rows = rows.sort_values(["weight_bits", "act_bits"])
        left.plot([widths.index(bits) for bits in rows["bits"]], rows[METRIC], marker="o", ms=4, label=quant)
        right.plot(rows["size_mb"], rows[METRIC], marker="o", ms=4)
    for value in full:
        left.axhline(value, color="black", ls="--", lw=0.8, label="full precision")
        right.axhline(value, color="black", ls="--", lw=0.8)
    left.set(xlabel="weight and activation bits", ylabel=value_named(METRIC).label, title=f"model {models}")
    left.set_xticks(range(len(widths)), widths)
    right.set(xlabel="size of the model, MB", xscale="log", title="sizes count the weights of every time range")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter("{x:g}")
    right.tick_params(which="minor", labelbottom=False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    plt.show()
else:
    print(f"no run with {METRIC}")
