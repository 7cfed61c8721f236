"""Measures what another processor changes: ``python -m vdq.reports.processors RUNS OTHER_RUNS [FOLDER]``.

Compares two folders of the same runs, made on two processors, video by video, and writes processors.csv and
processors.md to FOLDER (results/shapes). Its tables of the paper are filled with the runs of either processor as well,
and where these disagree is written down. A processor can stand in for an older one: with ONEDNN_MAX_CPU_ISA=AVX
MKL_CBWR=COMPATIBLE in the environment, oneDNN and MKL leave its newer instructions alone and take about twice as long.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from vdq.errors import UserError
from vdq.files import write_text
from vdq.metrics.catalogue import CATALOGUE, value_named, values_of
from vdq.reports.paper_report import claims_of
from vdq.reports.paper_tables import TITLES, VALUES, Find, fill
from vdq.reports.scores import per_video
from vdq.reports.text import markdown
from vdq.reports.uncertainty import DEVIATIONS, FILE, Noise
from vdq.tracking.registry import processor_of, runs

KEYS = ["signature", "metrics"]
TEXT = """# What another processor changes

{body}

{runs} runs were made and scored on two processors each: {pairs}. *Mean* is the largest change of a run's mean over its
videos, *per video* the root mean square of the changes of single videos. In a difference of two means over n videos,
{deviations} times that, divided by the root of n, is called noise.

{tables}

Written by `python -m vdq.reports.processors`."""


def changes(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Two registries -> one row a metric of every run that both have, scored by the same networks on two processors:
    `run`, `method`, `bits`, `changed`, `metric`, `videos`, the means `value` and `other_value`, their `change`, the
    root mean square of the videos' changes `per_video`, `processor` and `other_processor`. Raises UserError if none is
    left.
    """
    others = {tuple(run[KEYS]): run for _, run in second.iterrows()}
    pairs = {tuple(run[KEYS]): run for _, run in first.iterrows() if tuple(run[KEYS]) in others}
    rows = [row for key, run in pairs.items() for row in _rows(run, others[key])]
    if not rows:
        raise UserError("the two folders have no run in common that was made or scored on different processors")
    return pd.DataFrame(rows)


def _rows(run: pd.Series, other: pd.Series) -> list[dict]:
    names = {"processor": processor_of(run), "other_processor": processor_of(other)}
    if len(set(names.values())) == 1:
        return []
    own, again = per_video(run["folder"]), per_video(other["folder"])
    told = {"run": run["signature"], "method": run["quant"], "bits": run["bits"], "changed": run["changed"]}
    found = []
    for metric in (name for name in CATALOGUE | values_of([run]) if name in own and name in again):
        difference = again[metric] - own[metric]
        means = {"value": own[metric].mean(), "other_value": again[metric].mean(), "change": difference.mean()}
        spread = {"per_video": np.sqrt((difference**2).mean())}
        found.append(told | {"metric": metric, "videos": len(difference)} | means | spread | names)
    return found


def differing(name: str, written: pd.DataFrame, registries: list[pd.DataFrame], noise: Noise) -> pd.DataFrame | None:
    """What a table of the paper says otherwise with the runs of the second registry than with those of the first: marks
    and claims, `what`, `first` and `second`. ``written`` is the table's CSV, which names the runs; None if a registry
    lacks one of them.
    """
    said = []
    for registry in registries:
        if not set(_signatures(written).values()) <= set(registry["signature"]):
            return None
        said.append(_said(name, fill(name, _finder(written, registry), noise), noise))
    first, second = said
    rows = [{"what": what, "first": first[what], "second": second[what]} for what in first]
    table = pd.DataFrame(rows, columns=["what", "first", "second"])
    return table[table["first"] != table["second"]]


def _signatures(written: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    rows = written[written["run"].notna() & (written["w_bits"] != "average")]
    return {(row.method, row.w_bits, row.a_bits): row.run for row in rows.itertuples()}


def _finder(written: pd.DataFrame, registry: pd.DataFrame) -> Find:
    signatures, found = _signatures(written), registry.drop_duplicates("signature", keep="last").set_index("signature")

    def find(dataset: str, method: str, weight_bits: int, act_bits: int) -> pd.Series | None:
        signature = signatures.get((method, str(weight_bits), str(act_bits)))
        return None if signature is None else pd.Series({"signature": signature, **found.loc[signature]})

    return find


def _said(name: str, table: pd.DataFrame, noise: Noise) -> dict[str, str]:
    """Every mark of a filled table and every answer to its claims, by what they are about."""
    marks = {
        f"{row['method']} w{row['w_bits']}a{row['a_bits']} {value.label}": row[f"{value.name}_mark"] or "not marked"
        for value in VALUES
        if f"{value.name}_mark" in table
        for _, row in table.iterrows()
    }
    claims = claims_of(name, table, noise)
    return marks | dict(zip(claims["claim"], claims["here"], strict=True))


def report(table: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> str:
    """The Markdown file: `changes` as a table, then what `differing` found in each table of the paper."""
    rows = [
        {
            "metric": value_named(metric).label,
            "bits": bits,
            "runs": len(group),
            "videos": " and ".join(map(str, sorted(set(group["videos"])))),
            "mean": f"{group['change'].abs().max():.4g}",
            "per video": f"{np.sqrt((group['per_video'] ** 2).mean()):.4g}",
        }
        for (metric, bits), group in table.groupby(["metric", "bits"], sort=False)
    ]
    pairs = sorted({f"{row.processor} against {row.other_processor}" for row in table.itertuples()})
    facts = {"runs": table["run"].nunique(), "pairs": "; ".join(pairs), "deviations": DEVIATIONS}
    told = "\n\n".join(_told(name, found) for name, found in tables.items())
    body = markdown(pd.DataFrame(rows))
    return TEXT.format(body=body, tables=told or "No table has all its runs in both folders.", **facts) + "\n"


def _told(name: str, found: pd.DataFrame) -> str:
    title = f"Table {name.removeprefix('table')}"
    if found.empty:
        return f"{title} has the same marks and the same answers to its claims on both."
    return f"{title} says otherwise, where a difference lies near what counts as noise:\n\n{markdown(found)}"


def main(folder: Path, other: Path, results: Path) -> None:
    """Writes processors.csv and processors.md to ``results``."""
    registries = [runs(folder), runs(other)]
    for path, registry in zip((folder, other), registries, strict=True):
        if registry.empty:
            raise UserError(f"{path} holds no finished run")
    table = changes(*registries)
    write_text(results / FILE, table.to_csv(index=False))
    tables = {}
    for name in TITLES:
        path = results / f"{name}.csv"
        if path.is_file():
            written = pd.read_csv(path, dtype={"w_bits": str, "a_bits": str})
            found = differing(name, written, registries, Noise(table))
            tables |= {} if found is None else {name: found}
    write_text(results / "processors.md", report(table, tables))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="runs of which the tables are made")
    parser.add_argument("other", type=Path, help="the same runs, made on another processor")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/shapes"), help="where the tables lie")
    given = parser.parse_args()
    try:
        main(given.runs, given.other, given.folder)
    except UserError as error:
        sys.exit(f"error: {error}")
