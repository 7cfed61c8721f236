"""Every recipe at several bit-widths and with several noises: one table, its goals and its picture."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from vdq.files import write_text
from vdq.reports import costs
from vdq.reports.claims import GOALS, seeds_of, verdict
from vdq.reports.paper_report import LATEX, MARKDOWN, Marks, bracketed, escaped, marked
from vdq.reports.paper_tables import key_of, per_video
from vdq.reports.quality_figures import cost_figure, quality_figure
from vdq.reports.tables import METRICS as NAMES
from vdq.reports.uncertainty import CONFIDENCE, SHARES, Noise, mean_interval, share_interval, with_marks
from vdq.tracking.registry import processor_of, processors_told

TITLE = "The neighbouring systems: every recipe, {prompts} prompts, {seeds} noises"
METRICS = ("clipsim", "clip_temp", "top1", "psnr")
DIGITS = {"clipsim": 4, "clip_temp": 4, "top1": 3, "psnr": 2}
COSTS = (*costs.COSTS, "mean_act_bits", "calibration_prompts", "calibration_seconds", "quantize_seconds")
FULL = "fp16"
NOTE = """Values are means over all prompts and seeds; a seed's reference is its own full-precision run. Bold is the
best quantized model of a bit-width, if it beats every other by more than chance: the {confidence:.0%} interval of their
difference, paired over prompts, each with its videos of all seeds, leaves out zero (of top-1: a sign test over prompts
rejects), and the difference is larger than what another processor changes. Otherwise `=` marks the best and all that it
does not beat. In brackets the {confidence:.0%} interval of the difference to full precision (of PSNR: of the mean):
Student's, widened for skewness; of top-1 that of the share itself (Clopper and Pearson), with the prompts as trials.
{measured} *Calibration* is what is done with the calibration prompts: a pass in full precision and, where a recipe
wants recorded inputs, a second one with samplings that probe every step. *Parameters* is what the recipe then computes.
Wall-clock seconds on whatever machine made the runs, – where it was not recorded.

{costs}

**The testbed's numbers**: model {model}, its own small CLIP. They compare methods with each other and nothing else.
{processors}

Written by `python run.py 'stages=[tabulate]'` from `python run.py -m experiment=neighbours`."""

GOALS_TITLE = """**The goals of static_plus.** One holds if every seed's difference says so by more than chance, and
does not if one says the opposite by more than chance; else the answer is *within noise*."""


def by_seed(runs: pd.DataFrame) -> pd.DataFrame:
    """Finished runs of the same prompts -> one row a run: method, bits, seed, changed, the means of METRICS over its
    videos as far as it has them, COSTS, kind, model, processor and run. A run that was made twice counts once, the
    newer.
    """
    runs = runs.drop_duplicates("signature", keep="last")
    rows = []
    for _, run in runs.iterrows():
        scores = per_video(run)
        row = {"method": run["quant"], "bits": run["bits"], "seed": run["seed"], "changed": run["changed"]}
        row |= {metric: scores[key].mean() for metric in METRICS if (key := key_of(metric, scores.columns)) in scores}
        row |= {cost: run.get(cost) for cost in COSTS} | {"kind": run["kind"], "model": run["model"]}
        row["mean_act_bits"] = run["act_bits"] if pd.isna(row["mean_act_bits"]) else row["mean_act_bits"]
        if pd.isna(run["stats"]):
            row["calibration_prompts"] = 0
        row["processor"] = processor_of(run)
        rows.append(row | {"run": run["signature"], "reference": run["reference"], "folder": run["folder"]})
    table = pd.DataFrame(rows)
    return table.sort_values(["bits", "method", "changed", "seed"], ignore_index=True)


def summary(seeds: pd.DataFrame, noise: Noise | None = None) -> pd.DataFrame:
    """One row a recipe and bit-width, full precision first, then by bits and PSNR: the means over seeds, `<metric>_low`
    and `_high` of the interval, `<metric>_mark` among the quantized models of the bit-width, `<metric>_<seed>`, `seeds`
    and `runs`.
    """
    videos = videos_of(seeds)
    rows = [_row(group, videos) for _, group in seeds.groupby(["method", "bits"], sort=False)]
    table, noise = pd.DataFrame(rows), noise or Noise()

    def limit(metric: str, group: pd.DataFrame) -> float:
        return noise(metric, group["bits"].iloc[0], int((group["seeds"] * group["prompts"]).min()))

    quantized = table[table["method"] != FULL]
    table = with_marks(table, quantized, ["bits"], METRICS, limit).drop(columns=["scores", "prompts"])
    widths = table["bits"].map(lambda bits: tuple(-n for n in numbers(bits)))
    return (
        table.assign(width=widths)
        .sort_values(["width", "psnr"], ascending=[True, False], ignore_index=True)
        .drop(columns="width")
    )


def numbers(bits: str) -> tuple[int, int]:
    """Weight and activation bits of such as w4a8, or of full."""
    if bits == "full":
        return 16, 16
    return tuple(map(int, re.fullmatch(r"w(\d+)a(\d+)", bits).groups()))


def _row(runs: pd.DataFrame, videos: dict[str, pd.DataFrame]) -> dict:
    first = runs.iloc[0]
    row = {"method": first["method"], "bits": first["bits"], "kind": first["kind"], "model": first["model"]}
    row |= {"scores": {}, "prompts": len(videos[first["run"]])}
    for metric in METRICS:
        if metric not in runs or runs[metric].isna().any():
            continue
        row[metric] = runs[metric].mean()
        row |= {f"{metric}_{run.seed}": getattr(run, metric) for run in runs.itertuples()}
        own = row["scores"][metric] = over_seeds(metric, runs["run"], videos)
        if limits := _limits(metric, own, runs, videos):
            row[f"{metric}_low"], row[f"{metric}_high"] = limits
    row |= {cost: runs[cost].mean() for cost in COSTS}
    return row | {"seeds": len(runs), "runs": " ".join(runs["run"])}


def videos_of(seeds: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Scores of every video, in the order of the prompts, by run."""
    return {row.run: per_video({"folder": row.folder}) for row in seeds.itertuples()}


def over_seeds(metric: str, runs: pd.Series, videos: dict[str, pd.DataFrame]) -> np.ndarray:
    """A score a prompt, its mean over these runs."""
    tables = [videos[run] for run in runs]
    return np.mean([table[key_of(metric, table.columns)] for table in tables], axis=0)


def _limits(metric: str, own: np.ndarray, runs: pd.DataFrame, videos: dict) -> tuple[float, float] | None:
    """Of the interval: of the value where it compares with the reference already or is a share, else of the difference
    to the references, if they are there.
    """
    if metric in SHARES:
        return share_interval(own)
    if metric == "psnr":
        return mean_interval(own)
    if (runs["run"] == runs["reference"]).all() or not set(runs["reference"]) <= set(videos):
        return None
    return mean_interval(own - over_seeds(metric, runs["reference"], videos))


def goals(seeds: pd.DataFrame, noise: Noise | None = None) -> pd.DataFrame:
    """One row for each goal: whether our runs reach it, and the numbers of every seed."""
    noise, rows = noise or Noise(), []
    prompts = len(per_video({"folder": seeds["folder"].iloc[0]}))
    for claim in GOALS:
        result, found = verdict(claim, seeds_of(seeds), lambda metric, bits: noise(metric, bits, prompts))
        rows.append({"goal": claim.words, "here": result, "of each seed": found})
    return pd.DataFrame(rows)


def write_neighbours(seeds: pd.DataFrame, prompts: int, folder: Path, noise: Noise | None = None) -> None:
    """Writes ``folder``/neighbours as .md, .csv, .tex and .png, and the .png of their costs."""
    noise = noise or Noise()
    table = summary(seeds, noise)
    title = TITLE.format(prompts=prompts, seeds=seeds["seed"].nunique())
    facts = {"model": ", ".join(sorted(set(table["model"]))), "processors": processors_told(seeds["processor"])}
    note = NOTE.format(confidence=CONFIDENCE, measured=noise.words, costs=costs.cost_note(table), **facts)
    body = cells(table, MARKDOWN).to_markdown(index=False, disable_numparse=True)
    reached = goals(seeds, noise).to_markdown(index=False, disable_numparse=True)
    parts = [f"# {title}", body, note, GOALS_TITLE, reached]
    write_text(folder / "neighbours.md", "\n\n".join(parts) + "\n")
    write_text(folder / "neighbours.csv", table.to_csv(index=False))
    write_text(folder / "neighbours.tex", _latex(table, f"{title}\n{note}"))
    quality_figure(table.assign(weight_bits=[numbers(bits)[0] for bits in table["bits"]]), folder / "neighbours.png")
    cost_figure(table, folder / "neighbours_costs.png")


def cells(table: pd.DataFrame, marks: Marks) -> pd.DataFrame:
    """What is printed of a summary."""
    shown = {"method": table["method"], "bits": table["bits"], "activations": table["kind"]}
    for metric in METRICS:
        if metric in table and table[metric].notna().any():
            shown[f"{NAMES[metric]} ↑"] = _column(table, metric, marks)
    shown["PSNR of each seed"] = [_listed(row, "psnr") for _, row in table.iterrows()]
    shown |= costs.cost_columns(table)
    shown["calibration"] = [_calibration(row) for _, row in table.iterrows()]
    shown["parameters"] = [_seconds(value) for value in table["quantize_seconds"]]
    shown["runs"] = [" ".join(f"`{run}`" for run in runs.split()) for runs in table["runs"]]
    return pd.DataFrame(shown)


def _column(table: pd.DataFrame, metric: str, marks: Marks) -> list[str]:
    sign, digits = "" if metric in ("psnr", *SHARES) else "+", DIGITS[metric]
    return [marked(row, metric, digits, marks) + bracketed(row, metric, digits, sign) for _, row in table.iterrows()]


def _listed(row: pd.Series, metric: str) -> str:
    """The value of every seed."""
    seeds = [name for name in row.index if re.fullmatch(rf"{metric}_\d+", name) and not pd.isna(row[name])]
    return ", ".join(_number(row[name], 1) for name in sorted(seeds)) or "–"


def _calibration(row: pd.Series) -> str:
    if row["method"] == FULL or row["calibration_prompts"] == 0:
        return "none"
    if pd.isna(row["calibration_prompts"]):
        return "–"
    return f"{row['calibration_prompts']:.0f} prompts, {_seconds(row['calibration_seconds'])}"


def _seconds(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.1f} s"


def _number(value: float, digits: int, sign: str = "") -> str:
    return "–" if pd.isna(value) else f"{value:{sign}.{digits}f}"


def _latex(table: pd.DataFrame, notes: str) -> str:
    shown = cells(table, LATEX).map(lambda text: text.replace("`", "").replace("–", "--"))
    shown = shown.map(lambda text: text.replace("_", r"\_").replace("%", r"\%"))
    shown.columns = [escaped(name) for name in shown.columns]
    body = tabulate(shown, headers="keys", tablefmt="latex_raw", showindex=False, disable_numparse=True)
    comment = notes.replace("*", "").replace("\n", "\n% ")
    return f"% {comment}\n{body}\n"
