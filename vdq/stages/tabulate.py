"""runs -> results/: a table of all finished runs with the same prompts, noise and weights, and a sample grid."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd

from vdq.data.samples import read_sample
from vdq.data.video import contact_sheet
from vdq.files import write_text
from vdq.stages.experiment import Experiment
from vdq.tracking.registry import runs
from vdq.tracking.tables import comparison, write

log = logging.getLogger(__name__)
GRID_VIDEOS, GRID_FRAMES, GRID_COLUMNS = 48, 4, 4
HEADING = """# {name}: {prompts} prompts, model {model}

Every row is a finished run and `run` is its signature. Written by `python run.py stages=[tabulate]`."""
COST = """# Cost of simulated quantization

Time to sample over the time in full precision, both on the CPU. Written by `python run.py stages=[tabulate]`.

{table}
"""


def run(experiment: Experiment) -> None:
    reference = experiment.reference or experiment
    results, name = Path(experiment.cfg.paths.results), experiment.prompts.name
    table = _finished(experiment, reference)
    heading = HEADING.format(name=name, prompts=len(reference.prompts.evaluation), model=experiment.cfg.model.name)
    write(table, results / f"table_{name}", heading)
    print(comparison(table))
    this = table[table["signature"].isin([reference.signature, experiment.signature])]
    write_text(results / f"run_{name}.md", comparison(this) + "\n")
    _write_benchmarks(table, results / f"benchmark_{name}.md")
    prompts = reference.prompts.evaluation[:GRID_VIDEOS]
    samples = [read_sample(reference.folder, index)["frames"] for index in range(len(prompts))]
    contact_sheet(samples, prompts, GRID_FRAMES, results / f"samples_{name}.png", GRID_COLUMNS)
    log.info("tabulate: %d runs written to %s", len(table), results)


def _finished(experiment: Experiment, reference: Experiment) -> pd.DataFrame:
    """Runs of unchanged recipes with the same reference and the same judges."""
    root = experiment.cfg.paths.runs
    table = runs(root)
    if len(table):
        same = (table["reference"] == reference.signature) & (table["metrics"] == experiment.metrics_signature)
        table = table[same & (table["changed"] == "")]
    if not len(table):
        raise ValueError(f"paths.runs={root} holds no finished run of these prompts; sample and score one first")
    return table.sort_values(["weight_bits", "act_bits", "quant"], ascending=[False, False, True], ignore_index=True)


def _write_benchmarks(table: pd.DataFrame, path: Path) -> None:
    """The cost of every recipe that was benchmarked, if any was."""
    files = [Path(folder) / "benchmark.json" for folder in table["folder"]]
    benchmarks = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    if not benchmarks:
        return
    rows = [
        {
            "method": b["quant"],
            "bits": b["bits"],
            "ran": b["backend"],
            **{field: b[field] for field in ("prompts", "steps", "threads")},
            "time / full precision": f"{b['ratio']['median']:.3f}",
            "quartiles": "{:.3f} to {:.3f}".format(*b["ratio"]["quartiles"]),
        }
        for b in benchmarks
    ]
    write_text(path, COST.format(table=pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
