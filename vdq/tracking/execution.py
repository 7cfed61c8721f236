"""The paper's table 6: how long sampling takes, real integers and simulated ones kept apart."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from vdq.tracking.paper_tables import paper_rows

TEXT = """# Table 6: Execution time

Time to sample one batch over the time in full precision, measured in turns in one process; median of the rounds and
their quartiles. *Simulated* arithmetic quantizes and dequantizes in floating point, so it can only be slower than full
precision; *integer* arithmetic is what the paper's table is about. Written by `python run.py stages=[tabulate]`.

{table}

The paper's own seconds, for {videos} videos on an {gpu}: {paper}.
"""


def read_benchmarks(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each of the runs that has a benchmark."""
    files = [Path(folder) / "benchmark.json" for folder in runs["folder"]]
    found = [(file, json.loads(file.read_text(encoding="utf-8"))) for file in files if file.is_file()]
    signatures = dict(zip(runs["folder"], runs["signature"], strict=True))
    rows = [
        {
            "method": result["quant"],
            "bits": result["bits"],
            "arithmetic": result["backend"],
            "prompts": result["prompts"],
            "steps": result["steps"],
            "threads": result["threads"],
            "ratio": result["ratio"]["median"],
            "low": result["ratio"]["quartiles"][0],
            "high": result["ratio"]["quartiles"][1],
            "run": signatures[str(file.parent)],
        }
        for file, result in found
    ]
    return pd.DataFrame(rows).sort_values(["arithmetic", "ratio"], ignore_index=True) if rows else pd.DataFrame()


def table6(benchmarks: pd.DataFrame) -> str:
    """Markdown of the benchmarks with the paper's seconds below."""
    shown = benchmarks[["method", "bits", "arithmetic", "prompts", "steps", "threads"]].astype(str)
    shown["time / full precision"] = [
        f"{row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})" for row in benchmarks.itertuples()
    ]
    shown["run"] = [f"`{run}`" for run in benchmarks["run"]]
    paper = paper_rows("table6")
    return TEXT.format(
        table=shown.to_markdown(index=False, disable_numparse=True),
        videos=paper["num_videos"].iloc[0],
        gpu=paper["gpu"].iloc[0],
        paper=", ".join(f"{row.method} {row.execution_time_s}" for row in paper.itertuples()),
    )
