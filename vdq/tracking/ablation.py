"""What each part of static_plus is worth: runs with other fields beside the recipe as its file has it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from vdq.files import write_text
from vdq.tracking.neighbours import DIGITS, numbers
from vdq.tracking.tables import METRICS as NAMES

RECIPE = "static_plus"
METRICS = ("psnr", "clipsim")
FIELD = re.compile(r"(?:^|, )(\w+)=")
TEXT = """# Ablation of {recipe}, {prompts} prompts

{body}

In brackets the difference to the whole recipe with the same noise; bold is the best of a column. *Without* tells the
fields that differ from `conf/quant/{recipe}.yaml`; *only* the parts that are left where most are switched off. `runs`
are the signatures in the order of the columns.

**The testbed's numbers**: model {model}. Written by `python run.py stages=[tabulate]` from
`python run.py -m experiment=ablation`."""


def variants(seeds: pd.DataFrame) -> pd.DataFrame:
    """Rows of `neighbours.by_seed` -> one row a variant and bit-width: `label`, `changed`, `bits`, the means of METRICS
    over seeds, `<metric>_gain` over the whole recipe (mean over the seeds of both), `seeds` and `runs`. The whole
    recipe comes first, then what lacks least.
    """
    rows = seeds[seeds["method"] == RECIPE]
    whole = rows[rows["changed"] == ""].set_index(["bits", "seed"])
    switches = list(dict.fromkeys(name for changed in rows["changed"] for name in FIELD.findall(changed)))
    found = []
    for (changed, bits), group in rows.groupby(["changed", "bits"]):
        row = {"label": label(changed, switches), "changed": changed, "bits": bits}
        for metric in METRICS:
            gains = group.set_index(["bits", "seed"])[metric] - whole[metric]
            row |= {metric: group[metric].mean(), f"{metric}_gain": gains.mean()}
        found.append(row | {"seeds": len(group), "runs": " ".join(group["run"])})
    table = pd.DataFrame(found)
    order = table.assign(lacks=table["changed"].map(lambda text: len(FIELD.findall(text))))
    order["width"] = order["bits"].map(lambda bits: tuple(-n for n in numbers(bits)))
    return order.sort_values(["lacks", "label", "width"], ignore_index=True).drop(columns=["lacks", "width"])


def label(changed: str, switches: list[str]) -> str:
    """In words, which of the recipe's switches this variant has on."""
    off = FIELD.findall(changed)
    if not off:
        return RECIPE
    if len(off) <= len(switches) / 2 or len(switches) == 1:
        return f"without {changed}"
    return "only " + (", ".join(name for name in switches if name not in off) or "the plain recipe")


def write_ablation(seeds: pd.DataFrame, prompts: int, folder: Path) -> None:
    """Writes ``folder``/ablation as .md and .csv."""
    table = variants(seeds)
    model = ", ".join(sorted(set(seeds["model"])))
    body = cells(table).to_markdown(index=False, disable_numparse=True)
    write_text(folder / "ablation.md", TEXT.format(recipe=RECIPE, prompts=prompts, body=body, model=model) + "\n")
    write_text(folder / "ablation.csv", table.to_csv(index=False))


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """One row a variant, a column for each metric and bit-width."""
    widths = sorted(set(table["bits"]), key=numbers, reverse=True)
    rows = []
    for changed in table["changed"].unique():
        own = table[table["changed"] == changed].set_index("bits")
        row = {"variant": own["label"].iloc[0]}
        for metric in METRICS:
            for bits in widths:
                best = table.loc[table["bits"] == bits, metric].max()
                row[f"{NAMES[metric]} {bits}"] = _cell(own.loc[bits], metric, best) if bits in own.index else "–"
        present = [bits for bits in widths if bits in own.index]
        rows.append(row | {"runs": " ".join(f"`{run}`" for bits in present for run in own.at[bits, "runs"].split())})
    return pd.DataFrame(rows)


def _cell(row: pd.Series, metric: str, best: float) -> str:
    value, gain, digits = row[metric], row[f"{metric}_gain"], DIGITS[metric]
    if pd.isna(value):
        return "–"
    text = f"**{value:.{digits}f}**" if value == best else f"{value:.{digits}f}"
    return text if not row["changed"] or pd.isna(gain) else f"{text} ({gain:+.{digits}f})"
