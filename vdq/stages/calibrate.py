"""prompts -> Stats: one full-precision pass over the calibration prompts serves every recipe, alpha, bit-width and
time range.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from filelock import FileLock

from vdq.files import write_json
from vdq.quant.stats import Stats
from vdq.stages.experiment import Experiment, intact
from vdq.tasks.calibration import Calibration

log = logging.getLogger(__name__)


def run(experiment: Experiment) -> None:
    if not experiment.calibrates:
        log.info("calibrate: %s needs no statistics", experiment.cfg.quant.name)
        return
    path = experiment.stats_path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if intact(Stats.load, path):
            log.info("calibrate: statistics found, %s", path)
            return
        prompts = experiment.prompts.calibration
        task = Calibration(
            path=path,
            signature=experiment.stats_signature,
            model=experiment.model,
            denoiser=experiment.denoiser,
            sampler=experiment.sampler,
            clock=experiment.clock,
            prompts=prompts,
            indices=list(range(len(prompts))),
            batch_size=experiment.batch_size,
            seed=experiment.cfg.seed,
        )
        start = time.monotonic()
        experiment.predict(task)
        write_json(cost_path(path), {"seconds": round(time.monotonic() - start, 2)})
        log.info("calibrate: statistics of %d prompts written, %s", len(prompts), path)


def cost_path(stats: Path) -> Path:
    """Where it is written how long the statistics of this file took."""
    return stats.with_suffix(".json")
