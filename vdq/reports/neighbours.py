"""The table of every method at several bit-widths and with several noises, with its goals and pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from vdq.files import write_text
from vdq.metrics.catalogue import CLIP_TEMP, CLIPSIM, PSNR, TOP1, Value
from vdq.reports import costs
from vdq.reports.claims import GOALS, seed_scores_of, verdict
from vdq.reports.marks import LATEX, MARKDOWN, Marks, column
from vdq.reports.quality_figures import cost_figure, quality_figure
from vdq.reports.scores import key_of, over_seeds, per_video, videos_of
from vdq.reports.text import MISSING, latex, latex_comment, markdown, number
from vdq.reports.uncertainty import CONFIDENCE, Noise, mean_interval, share_interval, with_marks
from vdq.tracking.registry import processor_of, processors_note

TITLE = "The neighbouring systems: every method, {prompts} prompts, {seeds} noises"
VALUES = (CLIPSIM, CLIP_TEMP, TOP1, PSNR)
COSTS = (*costs.COSTS, "mean_act_bits", "calibration_prompts", "calibration_seconds", "quantize_seconds")
FULL = "fp16"
NOTE = """Values are means over all prompts and seeds; a seed's reference is its own full-precision run. Bold is the
best quantized model of a bit-width, if it beats every other by more than chance: the {confidence:.0%} interval of their
difference, paired over prompts, each with its videos of all seeds, leaves out zero (of top-1: a sign test over prompts
rejects), and the difference is larger than what another processor changes. Otherwise `=` marks the best and all that it
does not beat. In brackets the {confidence:.0%} interval of the difference to full precision (of PSNR: of the mean):
Student's, widened for skewness; of top-1 that of the share itself (Clopper and Pearson), with the prompts as trials.
{measured} *Calibration* is what is done with the calibration prompts: a pass in full precision and, where a method
wants recorded inputs, a second one with samplings that probe every step. *Parameters* is what the method then computes.
Wall-clock seconds on whatever machine made the runs, – where it was not recorded.

{costs}

**The testbed's numbers**: model {model}, its own small CLIP. They compare methods with each other and nothing else.
{processors}

Written by `python run.py 'stages=[tabulate]'` from `python run.py -m experiment=neighbours`."""

GOALS_TITLE = """**The goals of static_plus.** One holds if every seed's difference says so by more than chance, and
does not if one says the opposite by more than chance; else the answer is *within noise*."""


def by_seed(runs: pd.DataFrame) -> pd.DataFrame:
    """Finished runs of the same prompts -> one row a run: method, bits, seed, changed, the means of VALUES over its
    videos as far as it has them, COSTS, kind, model, processor and run. A run that was made twice counts once, the
    newer.
    """
    runs = runs.drop_duplicates("signature", keep="last")
    rows = []
    for _, run in runs.iterrows():
        scores = per_video(run["folder"])
        row = {"method": run["quant"], "bits": run["bits"], "seed": run["seed"], "changed": run["changed"]}
        keys = {value.name: key_of(value.name, scores.columns) for value in VALUES}
        row |= {name: scores[key].mean() for name, key in keys.items() if key in scores}
        row |= {cost: run.get(cost) for cost in COSTS} | {"kind": run["kind"], "model": run["model"]}
        row["mean_act_bits"] = run["act_bits"] if pd.isna(row["mean_act_bits"]) else row["mean_act_bits"]
        if pd.isna(run["stats"]):
            row["calibration_prompts"] = 0
        row["processor"] = processor_of(run)
        rows.append(row | {"run": run["signature"], "reference": run["reference"], "folder": run["folder"]})
    table = pd.DataFrame(rows)
    return table.sort_values(["bits", "method", "changed", "seed"], ignore_index=True)


def summary(seeds: pd.DataFrame, noise: Noise | None = None) -> pd.DataFrame:
    """One row a method and bit-width, full precision first, then by bits and PSNR: the means over seeds, `<metric>_low`
    and `_high` of the interval, `<metric>_mark` among the quantized models of the bit-width, `<metric>_<seed>`, `seeds`
    and `runs`.
    """
    videos = videos_of(seeds)
    rows = [_row(group, videos) for _, group in seeds.groupby(["method", "bits"], sort=False)]
    table, noise = pd.DataFrame(rows), noise or Noise()

    def limit(metric: str, group: pd.DataFrame) -> float:
        return noise(metric, group["bits"].iloc[0], int((group["seeds"] * group["prompts"]).min()))

    quantized = table[table["method"] != FULL]
    table = with_marks(table, quantized, ["bits"], VALUES, limit).drop(columns=["scores", "prompts"])
    widths = table["bits"].map(lambda bits: tuple(-n for n in numbers(bits)))
    return (
        table.assign(width=widths)
        .sort_values(["width", "psnr"], ascending=[True, False], ignore_index=True)
        .drop(columns="width")
    )


def numbers(bits: str) -> tuple[int, int]:
    """Weight and activation bits of a name such as "w4a8"; 16 and 16 of "full"."""
    if bits == "full":
        return 16, 16
    return tuple(map(int, re.fullmatch(r"w(\d+)a(\d+)", bits).groups()))


def _row(runs: pd.DataFrame, videos: dict[str, pd.DataFrame]) -> dict:
    first = runs.iloc[0]
    row = {"method": first["method"], "bits": first["bits"], "kind": first["kind"], "model": first["model"]}
    row |= {"scores": {}, "prompts": len(videos[first["run"]])}
    for value in VALUES:
        name = value.name
        if name not in runs or runs[name].isna().any():
            continue
        row[name] = runs[name].mean()
        row |= {f"{name}_{run.seed}": getattr(run, name) for run in runs.itertuples()}
        own = row["scores"][name] = over_seeds(name, runs["run"], videos)
        if limits := _limits(value, own, runs, videos):
            row[f"{name}_low"], row[f"{name}_high"] = limits
    row |= {cost: runs[cost].mean() for cost in COSTS}
    return row | {"seeds": len(runs), "runs": " ".join(runs["run"])}


def _limits(value: Value, own: np.ndarray, runs: pd.DataFrame, videos: dict) -> tuple[float, float] | None:
    """The limits of the interval: of the value where it compares with the reference or is a share, else of the
    difference to the references, if they are there.
    """
    if value.share:
        return share_interval(own)
    if value.fidelity:
        return mean_interval(own)
    if (runs["run"] == runs["reference"]).all() or not set(runs["reference"]) <= set(videos):
        return None
    return mean_interval(own - over_seeds(value.name, runs["reference"], videos))


def goals(seeds: pd.DataFrame, noise: Noise | None = None) -> pd.DataFrame:
    """One row for each goal: whether our runs reach it, and the numbers of every seed."""
    noise, rows = noise or Noise(), []
    prompts = len(per_video(seeds["folder"].iloc[0]))
    for claim in GOALS:
        result, found = verdict(claim, seed_scores_of(seeds), lambda metric, bits: noise(metric, bits, prompts))
        rows.append({"goal": claim.words, "here": result, "of each seed": found})
    return pd.DataFrame(rows)


def write_neighbours(seeds: pd.DataFrame, prompts: int, folder: Path, noise: Noise | None = None) -> None:
    """Writes ``folder``/neighbours as .md, .csv, .tex and .png, and the .png of their costs."""
    noise = noise or Noise()
    table = summary(seeds, noise)
    title = TITLE.format(prompts=prompts, seeds=seeds["seed"].nunique())
    facts = {"model": ", ".join(sorted(set(table["model"]))), "processors": processors_note(seeds["processor"])}
    note = NOTE.format(confidence=CONFIDENCE, measured=noise.words, costs=costs.cost_note(table), **facts)
    body = markdown(cells(table, MARKDOWN))
    parts = [f"# {title}", body, note, GOALS_TITLE, markdown(goals(seeds, noise))]
    write_text(folder / "neighbours.md", "\n\n".join(parts) + "\n")
    write_text(folder / "neighbours.csv", table.to_csv(index=False))
    comment = latex_comment(f"{title}\n{note}")
    write_text(folder / "neighbours.tex", f"{comment}\n{latex(cells(table, LATEX))}\n")
    quality_figure(table.assign(weight_bits=[numbers(bits)[0] for bits in table["bits"]]), folder / "neighbours.png")
    cost_figure(table, folder / "neighbours_costs.png")


def cells(table: pd.DataFrame, marks: Marks) -> pd.DataFrame:
    """A summary as text, as it is printed."""
    shown = {"method": table["method"], "bits": table["bits"], "activations": table["kind"]}
    for value in VALUES:
        if value.name in table and table[value.name].notna().any():
            shown[value.heading] = column(table, value, marks)
    shown["PSNR of each seed"] = [_of_each_seed(row, PSNR) for _, row in table.iterrows()]
    shown |= costs.cost_columns(table)
    shown["calibration"] = [_calibration(row) for _, row in table.iterrows()]
    shown["parameters"] = [_seconds(value) for value in table["quantize_seconds"]]
    shown["runs"] = [" ".join(f"`{run}`" for run in runs.split()) for runs in table["runs"]]
    return pd.DataFrame(shown)


def _of_each_seed(row: pd.Series, value: Value) -> str:
    """The means of every seed."""
    seeds = [name for name in row.index if re.fullmatch(rf"{value.name}_\d+", name) and not pd.isna(row[name])]
    return ", ".join(number(row[name], ".1f") for name in sorted(seeds)) or MISSING


def _calibration(row: pd.Series) -> str:
    if row["method"] == FULL or row["calibration_prompts"] == 0:
        return "none"
    if pd.isna(row["calibration_prompts"]):
        return MISSING
    return f"{row['calibration_prompts']:.0f} prompts, {_seconds(row['calibration_seconds'])}"


def _seconds(value: float) -> str:
    return MISSING if pd.isna(value) else f"{value:.1f} s"
