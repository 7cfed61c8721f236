"""Computes the runs that experiments lack, side by side.

``python -m vdq.commands.run_missing [--jobs N] EXPERIMENT ... [FIELD=VALUE ...]``

The missing runs of all named experiments of conf/experiment, each once whatever experiments share it, in N processes
side by side: no core waits for the last run of every sweep. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from tqdm import tqdm

from vdq.cli import one_sentence, one_sentence_at_the_end
from vdq.processes import end_on_sigterm, end_with_parent, end_workers

if TYPE_CHECKING:
    from vdq.stages.experiment import Experiment

MOST_JOBS = 4  # unless --jobs says otherwise; every job holds a model and a batch
KILLED = "error: a job was killed, perhaps because memory was short; the same command goes on, better with fewer --jobs"


def ordered(runs: list[Experiment]) -> list[DictConfig]:
    """Their configurations: first references, which all others wait for, then those of most prompts."""
    runs = sorted(runs, key=lambda run: (run.method.quantizes, -len(run.prompts.evaluation)))
    configurations = [run.cfg.copy() for run in runs]
    for cfg in configurations:
        cfg.reseeded = False  # it stands in the list
    return configurations


def compute(cfg: DictConfig) -> tuple[list[str], str | None]:
    """Runs one configuration without its table and bars; returns its warnings and, if it was refused, the sentence that
    says why.
    """
    from vdq.commands.run import run

    kept = _Warnings()
    logging.getLogger().addHandler(kept)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            run(cfg)
    except Exception as error:
        message = one_sentence(error)
        if message is None:
            raise
        return kept.texts, message
    finally:
        logging.getLogger().removeHandler(kept)
    return kept.texts, None


class _Warnings(logging.Handler):
    """Keeps this program's warnings, such as a damaged file that is made again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == "vdq":
            self.texts.append(record.getMessage())


def side_by_side(configurations: list[DictConfig], jobs: int) -> int:
    """Computes all of them; returns how many were refused. Their sentences are printed, and warnings, each once."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}  # of the jobs
    refused, printed = 0, set()
    with ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) as pool:
        futures = [pool.submit(compute, cfg) for cfg in configurations]
        try:
            for future in tqdm(as_completed(futures), desc="runs", total=len(futures), unit="run"):
                warnings, message = future.result()
                for warning in warnings:
                    if warning not in printed:
                        tqdm.write(f"warning: {warning}", file=sys.stderr)
                        printed.add(warning)
                if message:
                    refused += 1
                    tqdm.write(f"error: {message}", file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_workers()
            raise
    return refused


def _fitting_jobs(configurations: list[DictConfig]) -> int:
    """One where a device is shared."""
    on_cpu = all(cfg.trainer.accelerator == "cpu" for cfg in configurations)
    return min(MOST_JOBS, os.cpu_count() or 1) if on_cpu else 1


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vdq.commands.run_missing", description="Computes the runs that experiments lack."
    )
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="of conf/experiment, and FIELD=VALUE")
    parser.add_argument("--jobs", type=int, help=f"runs side by side: one a core, at most {MOST_JOBS}; on a GPU one")
    options = parser.parse_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs={options.jobs} must be at least 1")
    if options.jobs is not None and options.jobs > (cores := os.cpu_count() or 1):
        print(f"warning: --jobs={options.jobs} processes, each with a model, share {cores} cores", file=sys.stderr)
    from vdq.commands.status import missing, names_and_overrides  # imports torch, which --help does not need

    names, overrides = names_and_overrides(options.experiments)
    with one_sentence_at_the_end():
        configurations = ordered(missing(names, overrides))
        try:
            refused = side_by_side(configurations, options.jobs or _fitting_jobs(configurations))
        except BrokenProcessPool:
            sys.exit(KILLED)
    if refused:
        sys.exit(1)


if __name__ == "__main__":
    end_on_sigterm()
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")
