"""Follows a multirun: a line with the time left after each job, and at the end one table of all its runs."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vdq.errors import UserError
from vdq.files import check_folder, write_json
from vdq.reports.tables import comparison
from vdq.tracking import registry

RECORD = "job.json"


class Comparison(Callback):
    """Each job leaves a record in the sweep folder, so that jobs in other processes and on other machines are found
    as well. Launchers copy this object into their processes.
    """

    def __init__(self, runs: str) -> None:
        self.runs = Path(str(runs))  # what is no text is refused with all else
        self.total: int | None = None
        self.started = self.job_started = time.time()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder, inner = Path(config.hydra.run.dir), config.hydra.output_subdir or ""
        _check_folders({"hydra.run.dir": folder, "hydra.output_subdir": folder / inner})

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweep = config.hydra.sweep
        folder, inner = Path(sweep.dir), "" if OmegaConf.is_interpolation(sweep, "subdir") else sweep.subdir
        if not isinstance(runs := config.paths.runs, str):  # Hydra would make a folder of that name
            raise SystemExit(f"error: paths.runs={runs} must be text")
        _check_folders({"paths.runs": self.runs, "hydra.sweep.dir": folder, "hydra.sweep.subdir": folder / inner})
        self.total = _count(config)
        self.started = time.time()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.job_started = time.time()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if OmegaConf.is_missing(config.hydra.job, "num"):  # a single run
            return
        done = job_return.status == JobStatus.COMPLETED and isinstance(job_return.return_value, str)
        run = job_return.return_value if done else None
        record = {
            "job": config.hydra.job.num,
            "run": run,
            "computed": run is not None and self._computed(run),
            "started": self.job_started,
            "process": _process(),
            "overrides": job_return.overrides,
        }
        write_json(Path(config.hydra.sweep.dir) / str(config.hydra.job.num) / RECORD, record)
        if self.total is not None:
            tqdm.write(self._progress(_records(config)), file=sys.stderr)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        records = _records(config)
        if config.get("tabulate"):
            _write_results(config)
        self._print_table([record["run"] for record in records if record["run"] is not None])
        failed = [record for record in records if record["run"] is None]
        elsewhere = [record for record in failed if record["process"] != _process()]
        if elsewhere:  # of those in this process run.py knows, and their sentences were seen
            for record in elsewhere:
                print(f"error: job {record['job']} failed: {' '.join(record['overrides'] or [])}", file=sys.stderr)
            raise SystemExit(1)  # Hydra turns any Exception of a callback into a warning

    def _computed(self, run: str) -> bool:
        """Whether the job did work, as opposed to having found a finished run."""
        result = self.runs / run / registry.RESULT
        return not result.is_file() or result.stat().st_mtime >= self.job_started

    def _progress(self, records: list[dict]) -> str:
        """A progress bar as text: it stays between the bars and the log lines of the runs, from whatever process.

        Its rate is that of the runs that were computed, all workers together: runs that were found say nothing about
        the time of those to come.
        """
        now = time.time()
        computed = [record["started"] for record in records if record["computed"]]
        rate = len(computed) / max(now - min(computed), 1e-9) if computed else 0
        return tqdm.format_meter(len(records), self.total, now - self.started, rate=rate, prefix="sweep", unit="run")

    def _print_table(self, names: list[str]) -> None:
        finished = registry.runs(self.runs)
        if not len(finished) or not names:
            return
        finished = finished.set_index("folder", drop=False)
        folders = dict.fromkeys(str(self.runs / name) for name in names)
        swept = finished.loc[[folder for folder in folders if folder in finished.index]]
        others = finished.drop(swept.index)
        references = others[others["signature"].isin(swept["reference"])]
        if len(swept):
            print(f"\n{comparison(pd.concat([references, swept]))}")


def _check_folders(folders: dict[str, Path]) -> None:
    """Ends the program with a sentence where Hydra could not write; it would turn any Exception into a warning."""
    try:
        for field, path in folders.items():
            check_folder(field, path)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def _write_results(config: DictConfig) -> None:
    """What ``'stages=[tabulate]'`` does, with the settings that all jobs shared."""
    from vdq.commands import tabulate  # the stages import torch, which a sweep in other processes does not need before
    from vdq.sources import without_network
    from vdq.stages.experiment import Experiment

    cfg = config.copy()
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    try:
        with without_network():
            tabulate.run(Experiment(cfg))
    except UserError as error:  # such as no finished run yet; the sweep itself went well
        print(f"tabulate: {error}", file=sys.stderr)


def jobs_of(overrides: list[Override]) -> list[list[str]]:
    """The overrides of a sweep's jobs, as Hydra's basic sweeper has them: for every field its values, a job each. The
    last override of a field counts.
    """
    values = {
        each.get_key_element(): [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
        if each.is_sweep_override()
        else [each.input_line]
        for each in overrides
    }
    return list(values.values())


def _count(config: DictConfig) -> int | None:
    """The number of jobs; None if the sweeper decides while it goes on."""
    if config.hydra.sweeper._target_.rpartition(".")[2] != "BasicSweeper":
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    hydra = GlobalHydra.instance()
    parser = OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None)  # for quant=glob(tsq_*)
    return prod(map(len, jobs_of(parser.parse_overrides([*params, *config.hydra.overrides.task]))))


def _records(config: DictConfig) -> list[dict]:
    """Of the jobs that have ended, in the order of the sweep."""
    paths = Path(config.hydra.sweep.dir).glob(f"*/{RECORD}")
    return sorted((json.loads(path.read_text(encoding="utf-8")) for path in paths), key=lambda record: record["job"])


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
