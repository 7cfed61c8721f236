"""prompts -> Stats: one full-precision pass over the calibration prompts serves every recipe, alpha, bit-width and
time range.
"""

from __future__ import annotations

import logging

from filelock import FileLock

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
        experiment.predict(task)
        log.info("calibrate: statistics of %d prompts written, %s", len(prompts), path)
