"""runs -> results/: the table of all finished runs that share this experiment's prompts, noise and weights, and a
sample grid.
"""

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
GRID_VIDEOS, GRID_FRAMES = 48, 6
HEADING = """# {name}: {prompts} prompts, model {model}

Every row is a finished run and `run` is its signature. Written by `python run.py stages=[tabulate]`."""


def run(experiment: Experiment) -> None:
    reference = experiment.reference or experiment
    results, name = Path(experiment.cfg.paths.results), experiment.prompts.name
    table = _finished(experiment.cfg.paths.runs, reference.signature)
    heading = HEADING.format(name=name, prompts=len(reference.prompts.evaluation), model=experiment.cfg.model.name)
    write(table, results / f"table_{name}", heading)
    print(comparison(table))
    _write_benchmarks(table, results / f"benchmark_{name}.md")
    prompts = reference.prompts.evaluation[:GRID_VIDEOS]
    samples = [read_sample(reference.folder, index)["frames"] for index in range(len(prompts))]
    contact_sheet(samples, prompts, GRID_FRAMES, results / f"samples_{name}.png")
    log.info("tabulate: %d runs written to %s", len(table), results)


def _finished(root: str, reference: str) -> pd.DataFrame:
    table = runs(root)
    if len(table):
        table = table[table["reference"] == reference]
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
            "time / full precision": f"{b['ratio']['median']:.3f}",
            "quartiles": "{:.3f} to {:.3f}".format(*b["ratio"]["quartiles"]),
        }
        for b in benchmarks
    ]
    note = "Sampling {prompts} prompts in {steps} steps on {threads} threads of a CPU.".format(**benchmarks[0])
    markdown = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    write_text(
        path,
        f"# Cost of simulated quantization\n\n{note} Written by `python run.py stages=[tabulate]`.\n\n{markdown}\n",
    )
