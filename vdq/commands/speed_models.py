"""What quantization costs on models of diffusers: ``python -m vdq.commands.speed_models FILE --runs RUNS``.

Gathers what `'stages=[benchmark]'` measured with the parts block and driver.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from vdq.benchmark.plan import BLOCK, DRIVER
from vdq.benchmark.record import DYNAMICS
from vdq.benchmark.rounds import FULL, SIMULATED
from vdq.files import write_text
from vdq.reports import execution
from vdq.reports.text import markdown

QUIET = 0.1  # a share of the CPUs that other programs may take
GOALS = {
    DRIVER: ("a sampling through this project / by the plain call", 1.01),
    BLOCK: ("simulation / full precision", 1.25),
}
TEXT = """# Speed of blocks of published models

One block of each kind with random weights, of the published widths, on a small video whose size stands in the title;
everything of a case was timed in turn in one process. Integers run layer by layer, attention in full precision. Which
share of a step the linears are at a model's own size, and so how much faster it can become:
[operations](flops_models.md). Written by `python -m vdq.commands.speed_models`.

## Goals

{goals}

`others` is the share of the CPUs that other programs took in the rounds, median. Above {quiet:.0%} the machine was not
quiet, and a time is no statement about it; ratios are of times taken in turn.

{report}
"""


def goals(benchmarks: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a case: the ratio of times, of the simulation that of the slowest static method."""
    return pd.DataFrame(row for content in benchmarks for case in content["cases"] for row in _goal(content, case))


def _goal(content: dict[str, Any], case: dict[str, Any]) -> Iterator[dict[str, str]]:
    words, most = GOALS[content["part"]]
    of_driver = content["part"] == DRIVER
    kind, left_out = (FULL, FULL) if of_driver else (SIMULATED, DYNAMICS[SIMULATED])
    rows = [row for row in case["rows"] if row["kind"] == kind and row["name"] != left_out]
    if not rows:
        return
    slowest = min(rows, key=lambda row: row["speedup"]["median"])
    ratio = 1 / slowest["speedup"]["median"]
    foreign = [share for share in case["foreign"] if share is not None]
    yield {
        "case": case["title"],
        "ratio": words if of_driver else f"{words}, {slowest['name'].partition(',')[0]}",
        "measured": f"{ratio:.3f}",
        "at most": f"{most}",
        "reached": "yes" if ratio <= most else "no",
        "others": f"{statistics.median(foreign):.0%}" if foreign else "not known",
        "machine": content["machine"]["device"],
    }


def page(benchmarks: list[dict[str, Any]]) -> str:
    """Markdown of goals and times."""
    return TEXT.format(goals=markdown(goals(benchmarks)), report=execution.report(benchmarks), quiet=QUIET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="Markdown file to write")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of runs, paths.runs")
    asked = parser.parse_args()
    write_text(asked.file, page(execution.read_blocks(asked.runs)))


if __name__ == "__main__":
    main()
