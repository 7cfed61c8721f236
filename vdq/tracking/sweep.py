"""Ends a multirun with one table of all its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vdq.files import write_text
from vdq.tracking import registry
from vdq.tracking.tables import comparison


class Comparison(Callback):
    """Each job leaves the name of its run folder in the sweep folder, so that jobs in other processes are found as
    well.
    """

    def __init__(self, runs: str) -> None:
        self.runs = Path(runs)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if OmegaConf.is_missing(config.hydra.job, "num"):  # a single run
            return
        if job_return.status == JobStatus.COMPLETED and isinstance(job_return.return_value, str):
            write_text(Path(config.hydra.sweep.dir) / str(config.hydra.job.num) / "run.txt", job_return.return_value)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        finished = registry.runs(self.runs)
        files = sorted(Path(config.hydra.sweep.dir).glob("*/run.txt"), key=lambda path: int(path.parent.name))
        if not len(finished) or not files:
            return
        finished = finished.set_index("folder", drop=False)
        folders = dict.fromkeys(str(self.runs / path.read_text(encoding="utf-8")) for path in files)
        swept = finished.loc[[folder for folder in folders if folder in finished.index]]
        others = finished.drop(swept.index)
        references = others[others["signature"].isin(swept["reference"])]
        if len(swept):
            print(f"\n{comparison(pd.concat([references, swept]))}")
