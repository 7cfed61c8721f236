"""The paper's tables 1 to 5 with our runs in them: values, intervals, marks, and the paper's own numbers where they can
be compared.

A table is the paper's CSV file; each of its rows is one run, found by its signature. A row without a finished run stays
empty.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from vdq.metrics.catalogue import CLIP_TEMP, CLIPSIM, PSNR, VQA_A, VQA_T
from vdq.reports.scores import key_of, per_video
from vdq.reports.uncertainty import Noise, mean_interval, with_marks
from vdq.tracking.registry import processor_of, read_config

PAPER = Path(__file__).parent / "paper"
TITLES = {
    "table1": "Methods at W8A8, first prompt set",
    "table2": "Methods at W8A8, second prompt set",
    "table3": "Bit-widths, first prompt set",
    "table4": "Time ranges at W8A8, first prompt set",
    "table5": "Time ranges at W8A8, second prompt set",
}
PAPER_VALUES = (CLIPSIM, CLIP_TEMP, VQA_A, VQA_T)
VALUES = (*PAPER_VALUES, PSNR)  # the paper has no distance to full precision
PROMPTS = {"table1": 48, "table2": 101, "table3": 48, "table4": 48, "table5": 101}
MODEL = "opensora_v1_512"  # of the paper
SAMPLER = {"steps": 20, "guidance_scale": 7.0}  # of the paper
OURS = {"table1": ["asq_tsw"], "table2": ["asq_tsw"]}  # methods of ours, beside the paper's methods
OTHER_NOISE = "fp16, other noise"

Find = Callable[[str, str, int, int], pd.Series | None]  # data set, method, weight bits, activation bits -> run
Limit = Callable[[str, str], float]  # metric, bits such as w8a8 -> what a difference of two means has to exceed


def paper_rows(name: str) -> pd.DataFrame:
    """The paper's table, one row a method and bit-width; bits of an average are 'average'."""
    return pd.read_csv(PAPER / f"{name}.csv", dtype={"w_bits": str, "a_bits": str})


def wanted(name: str) -> pd.DataFrame:
    """The rows of our table: full precision, the same with another noise, the paper's rows, and methods of ours."""
    rows = paper_rows(name)
    dataset = rows["dataset"].iloc[0]
    full = rows[rows["method"] == "fp16"]
    if full.empty:  # tables 4 and 5 leave out what tables 1 and 2 have
        full = paper_rows("table1" if dataset == "opensora" else "table2").query("method == 'fp16'")
    blank = {"dataset": dataset, "w_bits": "16", "a_bits": "16"}
    ours = [{**blank, "method": method, "w_bits": "8", "a_bits": "8"} for method in OURS.get(name, [])]
    parts = [full, pd.DataFrame([{**blank, "method": OTHER_NOISE}]), rows[rows["method"] != "fp16"], pd.DataFrame(ours)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def fill(name: str, find: Find, noise: Noise | None = None) -> pd.DataFrame:
    """One row a method and bit-width: `<metric>` of our run, `<metric>_low` and `_high` of its difference to full
    precision (paired over prompts, 95 %; of the value itself for PSNR), `<metric>_mark` among the quantized models of
    the bit-width, `paper_<metric>`, `run`, what it was made with: `model`, `prompts`, `seed`, `steps`,
    `guidance_scale`, `processor`, whether that is `comparable` to the paper, and `scores`, by metric a value a prompt.
    """
    rows = wanted(name).rename(columns={value.name: f"paper_{value.name}" for value in PAPER_VALUES})
    dataset = rows["dataset"].iloc[0]
    reference = find(dataset, "fp16", 16, 16)
    filled = []
    for _, row in rows.iterrows():
        if row["w_bits"] == "average":
            filled.append(row.to_dict())
            continue
        run = find(dataset, row["method"], int(row["w_bits"]), int(row["a_bits"]))
        values = {} if run is None else _values(run, reference) | {"comparable": comparable(run, PROMPTS[name])}
        filled.append(row.to_dict() | values)
    table = _averaged(pd.DataFrame(filled))
    return _marked(table, limits(table, noise or Noise())) if "scores" in table else table


def limits(table: pd.DataFrame, noise: Noise) -> Limit:
    """What a difference has to exceed: what another processor changes, or what another noise does, if that is more."""
    full, other = (table[table["method"] == method].iloc[0] for method in ("fp16", OTHER_NOISE))

    def limit(metric: str, bits: str) -> float:
        seed = abs(other.get(metric, np.nan) - full.get(metric, np.nan))
        return np.nanmax([noise(metric, bits, full.get("prompts", 1)), seed])

    return limit


def _marked(table: pd.DataFrame, limit: Limit) -> pd.DataFrame:
    """The table with the marks of the best among the quantized models of each bit-width."""
    quantized = table["scores"].map(bool) & table["scores"].notna() & (table["w_bits"] != "average")
    rows = table[quantized & ~table["method"].str.startswith("fp16")]

    def of_rows(metric: str, group: pd.DataFrame) -> float:
        first = group.iloc[0]
        return limit(metric, f"w{first['w_bits']}a{first['a_bits']}")

    return with_marks(table, rows, ["w_bits", "a_bits"], VALUES, of_rows)


def _values(run: pd.Series, reference: pd.Series | None) -> dict:
    scores = per_video(run["folder"])
    values = {"run": run["signature"], "kind": run["kind"], "model": run["model"], "prompts": len(scores)}
    values |= {"seed": run.get("seed"), "processor": processor_of(run), "scores": {}} | sampler_of(run)
    base = None if reference is None or reference["signature"] == run["signature"] else per_video(reference["folder"])
    for value in VALUES:
        name, key = value.name, key_of(value.name, scores.columns)
        if key not in scores or scores[key].isna().any():
            continue
        own = values["scores"][name] = scores[key].to_numpy()
        values[name] = own.mean()
        if value.fidelity:
            values |= interval(name, own)
        elif base is not None and key in base:
            values |= interval(name, own - base[key].to_numpy())
    return values


def comparable(run: pd.Series, prompts: int) -> bool:
    """Whether the paper's numbers were made alike: its model, its metrics' networks, prompts, steps and guidance."""
    judged = {"ViT-B-32-quickgelu openai", "DOVER"} <= set(run["assets"])
    sampled = sampler_of(run) == SAMPLER and len(per_video(run["folder"])) == prompts
    return run["model"] == MODEL and judged and sampled


def sampler_of(run: pd.Series) -> dict[str, float]:
    """Steps and guidance of a run, as far as its folder has them."""
    sampler = read_config(run["folder"]).get("sampler") or {}
    return {name: sampler[name] for name in SAMPLER if name in sampler}


def interval(metric: str, values: np.ndarray) -> dict[str, float]:
    """The interval of the mean over prompts, as columns `<metric>_low` and `<metric>_high`."""
    low, high = mean_interval(values)
    return {f"{metric}_low": low, f"{metric}_high": high}


def _averaged(table: pd.DataFrame) -> pd.DataFrame:
    """Fills the rows of averages of those methods all of whose runs are there."""
    for index in table.index[table["w_bits"] == "average"]:
        parts = table[(table["method"] == table.at[index, "method"]) & (table["w_bits"] != "average")]
        if "run" not in parts or parts["run"].isna().any():
            continue
        scores = {
            value.name: np.mean([scores[value.name] for scores in parts["scores"]], axis=0)
            for value in VALUES
            if all(value.name in scores for scores in parts["scores"])
        }
        for metric, values in scores.items():
            table.at[index, metric] = values.mean()
        table.at[index, "scores"], table.at[index, "run"] = scores, f"{len(parts)} runs above"
    return table
