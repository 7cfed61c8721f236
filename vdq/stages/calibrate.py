"""prompts -> Stats: one full-precision pass over the calibration prompts serves every method, alpha, bit-width and
time range. Methods that judge by the output of layers take a second pass -> RecordedInputs, which serves them all too.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from filelock import FileLock

from vdq.files import write_json
from vdq.quant.recorded_inputs import RecordedInputs
from vdq.quant.stats import Stats
from vdq.stages.compute import load_denoiser, predict
from vdq.stages.experiment import Experiment
from vdq.stages.run_folder import intact
from vdq.tasks.calibration import Calibration
from vdq.tasks.recording import Recording

log = logging.getLogger(__name__)


def run(experiment: Experiment) -> None:
    if not experiment.identity.calibrates:
        log.info("calibrate: %s needs no statistics", experiment.cfg.quant.name)
        return
    _make(experiment, Calibration, experiment.files.stats, Stats, "statistics", batch_size=experiment.batch_size)
    if experiment.identity.records:
        _make(experiment, Recording, experiment.files.recorded, RecordedInputs, "recorded inputs")


def load(experiment: Experiment) -> Stats | None:
    """What the method needs, made if it is not there or damaged; None for a data-free method."""
    if not experiment.identity.calibrates:
        return None
    if not intact(Stats.load, experiment.files.stats) or (
        experiment.identity.records and not intact(RecordedInputs.load, experiment.files.recorded)
    ):
        run(experiment)
    stats = Stats.load(experiment.files.stats)
    return stats.with_inputs(RecordedInputs.load(experiment.files.recorded)) if experiment.identity.records else stats


def cost_path(path: Path) -> Path:
    """Where it is written how long the statistics or recorded inputs of this file took."""
    return path.with_suffix(".json")


def _make(
    experiment: Experiment,
    task: type[Calibration | Recording],
    path: Path,
    kind: type[Stats | RecordedInputs],
    what: str,
    **options: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if intact(kind.load, path):
            log.info("calibrate: %s found, %s", what, path)
            return
        prompts, start = experiment.prompts.calibration, time.monotonic()
        predict(
            experiment,
            task(
                path=path,
                signature=experiment.identity.stats_signature,
                model=experiment.model,
                denoiser=load_denoiser(experiment),
                sampler=experiment.sampler,
                clock=experiment.clock,
                prompts=prompts,
                indices=list(range(len(prompts))),
                seed=experiment.cfg.seed,
                **options,
            ),
        )
        write_json(cost_path(path), {"seconds": round(time.monotonic() - start, 2)})
        log.info("calibrate: %s of %d prompts written, %s", what, len(prompts), path)
