"""The ablation table: what each part of static_plus is worth, from runs in which fields of the method differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vdq.errors import UserError
from vdq.files import write_text
from vdq.metrics.catalogue import CLIPSIM, PSNR, Value
from vdq.reports.marks import MARKDOWN, marked
from vdq.reports.neighbours import numbers
from vdq.reports.scores import over_seeds, videos_of
from vdq.reports.text import MISSING, markdown
from vdq.reports.uncertainty import CONFIDENCE, Noise, compare, with_marks
from vdq.tracking.registry import processors_note, read_config

METHOD = "static_plus"
# The parts, and the value with which each is off; a method with all of them off is called plain.
OFF = {
    "alpha": None,
    "shift": None,
    "rotation_block": 0,
    "fold_rotation": False,
    "low_rank": 0,
    "step_bits": None,
    "token_groups": None,
    "clamp_acts": False,
    "weight_grid": "minmax",
    "rounding": "nearest",
    "correct_bias": False,
}
VALUES = (PSNR, CLIPSIM)
TEXT = """# Ablation of {method}, {prompts} prompts

{body}

`{method}` is the method as `conf/quant/{method}.yaml` has it: {parts}. *plain* has no part. In brackets the difference
to `{method}` with the same noise; `~` before it says that it may be chance: its {confidence:.0%} interval, paired over
prompts, holds zero, or another processor changes as much. Bold is the best of a column, if it beats every other by
more than that; otherwise `=` marks the best and all that it does not beat. {measured} Seeds: {seeds}. `runs` are the
signatures in the columns' order.

**The testbed's numbers**: model {model}. {processors} Written by `python run.py 'stages=[tabulate]'` from
`python run.py -m experiment=ablation`."""


def variants(seeds: pd.DataFrame, noise: Noise | None = None) -> pd.DataFrame:
    """Rows of `neighbours.by_seed` -> one row a variant of the method and bit-width: `variant`, `changed`, `bits`, the
    means of VALUES over seeds, `<metric>_gain` over the whole method (mean over the seeds of both), whether that is
    `<metric>_beyond_noise`, `<metric>_mark` of the best of a bit-width, `seeds` and `runs`. The whole method comes
    first, with the bit-widths and seeds that variants have, the plain one and what is made of it last. Runs of other
    fields than the whole method has are of an earlier version and left out. Raises UserError without the whole one.
    """
    rows = seeds[seeds["method"] == METHOD]
    unchanged = rows[rows["changed"] == ""]
    if unchanged.empty:
        raise UserError(f"no run of {METHOD} as its file has it; the ablation compares with it")
    whole = fields_of(unchanged.iloc[0])
    rows = rows[[fields_of(run).keys() == whole.keys() for _, run in rows.iterrows()]]
    varied = rows.loc[rows["changed"] != "", ["bits", "seed"]].drop_duplicates()
    base = unchanged.merge(varied, on=["bits", "seed"])
    rows = pd.concat([base, rows[rows["changed"] != ""]])
    videos, noise, found = videos_of(rows), noise or Noise(), []
    for (changed, bits), group in rows.groupby(["changed", "bits"]):
        place, words = described(fields_of(group.iloc[0]), whole)
        row = {"variant": words, "changed": changed, "bits": bits, "place": place}
        row |= {"seeds": len(group), "runs": " ".join(group["run"])}
        found.append(row | _effect(group, base[base["bits"] == bits], videos, noise))

    def limit(metric: str, group: pd.DataFrame) -> float:
        prompts = len(group["scores"].iloc[0][metric])
        return noise(metric, group["bits"].iloc[0], int(prompts * group["seeds"].min()))

    table = pd.DataFrame(found)
    table = with_marks(table, table, ["bits"], VALUES, limit).drop(columns="scores")
    table["width"] = table["bits"].map(lambda bits: tuple(-n for n in numbers(bits)))
    return table.sort_values(["place", "variant", "width"], ignore_index=True).drop(columns=["place", "width"])


def _effect(group: pd.DataFrame, base: pd.DataFrame, videos: dict[str, pd.DataFrame], noise: Noise) -> dict[str, Any]:
    """The means and gains of a variant at one bit-width, and in `scores` each prompt's mean over seeds by metric."""
    shared = set(group["seed"]) & set(base["seed"])
    row: dict[str, Any] = {"scores": {}}
    for metric in (value.name for value in VALUES):
        own = row["scores"][metric] = over_seeds(metric, group["run"], videos)
        row |= {metric: own.mean(), f"{metric}_gain": np.nan, f"{metric}_beyond_noise": False}
        if shared:
            pair = [runs.loc[runs["seed"].isin(shared), "run"] for runs in (group, base)]
            gains = over_seeds(metric, pair[0], videos) - over_seeds(metric, pair[1], videos)
            row[f"{metric}_gain"] = gains.mean()
            limit = noise(metric, group["bits"].iloc[0], len(gains) * len(shared))
            row[f"{metric}_beyond_noise"] = compare(gains, limit) != 0
    return row


def fields_of(run: pd.Series) -> dict[str, Any]:
    """The method's fields that a run was made with, from its folder, without the bits."""
    fields = read_config(run["folder"])["quant"]
    return {name: value for name, value in fields.items() if name not in ("weight_bits", "act_bits")}


def described(fields: dict[str, Any], whole: dict[str, Any]) -> tuple[int, str]:
    """A variant in words, and its place: 0 the whole method, 1 without a part, 2 other changes, 3 the plain method, 4
    with one part more.
    """
    changed = [name for name in fields if fields[name] != whole.get(name)]
    on = [name for name in OFF if fields[name] != OFF[name]]
    if not changed:
        return 0, METHOD
    if len(changed) > 1 and len(on) <= 1 and set(changed) <= set(OFF):
        return (4, f"plain, {_told(on[0], fields)}") if on else (3, "plain")
    without = len(changed) == 1 and changed[0] not in on and changed[0] in OFF
    words = [f"without {name}" if name in OFF and name not in on else _told(name, fields) for name in changed]
    return (1 if without else 2), ", ".join(words)


def _told(name: str, fields: dict[str, Any]) -> str:
    return name if fields[name] is True else f"{name} {fields[name]}"


def write_ablation(seeds: pd.DataFrame, prompts: int, folder: Path, noise: Noise | None = None) -> None:
    """Writes ``folder``/ablation as .md and .csv."""
    noise = noise or Noise()
    table = variants(seeds, noise)
    whole = fields_of(seeds[(seeds["method"] == METHOD) & (seeds["changed"] == "")].iloc[0])
    parts = ", ".join(_told(name, whole) for name in OFF if whole[name] != OFF[name])
    varied = sorted(set(seeds.loc[(seeds["method"] == METHOD) & (seeds["changed"] != ""), "seed"]))
    facts = {"method": METHOD, "prompts": prompts, "parts": parts, "model": ", ".join(sorted(set(seeds["model"])))}
    facts |= {"seeds": ", ".join(map(str, varied)), "confidence": CONFIDENCE, "measured": noise.words}
    facts["processors"] = processors_note(seeds.loc[seeds["method"] == METHOD, "processor"])
    write_text(folder / "ablation.md", TEXT.format(body=markdown(cells(table)), **facts) + "\n")
    write_text(folder / "ablation.csv", table.to_csv(index=False))


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: one row a variant, a column for each metric and bit-width."""
    widths = sorted(set(table["bits"]), key=numbers, reverse=True)
    rows = []
    for changed in table["changed"].unique():
        own = table[table["changed"] == changed].set_index("bits")
        row = {"variant": own["variant"].iloc[0]}
        for value in VALUES:
            for bits in widths:
                row[f"{value.label} {bits}"] = _cell(own.loc[bits], value) if bits in own.index else MISSING
        present = [bits for bits in widths if bits in own.index]
        rows.append(row | {"runs": " ".join(f"`{run}`" for bits in present for run in own.at[bits, "runs"].split())})
    return pd.DataFrame(rows)


def _cell(row: pd.Series, value: Value) -> str:
    """The mean with its mark, and its difference to the whole method."""
    text, gain = marked(row, value, MARKDOWN), row[f"{value.name}_gain"]
    chance = "" if row[f"{value.name}_beyond_noise"] else "~"
    return text if not row["changed"] or pd.isna(gain) else f"{text} ({chance}{value.text(gain, '+')})"
