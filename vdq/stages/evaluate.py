"""videos -> metrics: scores the run and its reference, finishes the run folder and logs it.

Order matters: ``result.json`` is the last file of a run, and what is interrupted before that is done again. The tracker
comes after it: whatever becomes of logging, the result is there.
"""

from __future__ import annotations

import json
import logging
import os

import pandas as pd
from omegaconf import OmegaConf

from vdq.files import write_json, write_text
from vdq.reports.tables import comparison
from vdq.stages import sample
from vdq.stages.experiment import Experiment
from vdq.stages.result import content
from vdq.stages.track import track
from vdq.tasks.evaluation import Evaluation, SampleDataset
from vdq.tasks.generation import EXECUTION
from vdq.tracking.finished import wants_logging
from vdq.tracking.manifest import manifest
from vdq.tracking.registry import RESULT

log = logging.getLogger(__name__)
SWEEP = "WANDB_SWEEP_ID"  # in the environment of a run that `wandb agent` has started


def run(experiment: Experiment) -> None:
    if experiment.model.random:
        log.warning("evaluate: the model's weights are random: no metric is taken of %s", experiment.folder)
        return
    pair = [experiment] if experiment.reference is None else [experiment.reference, experiment]
    results = [_evaluate(each) for each in pair]
    if len({(result["dtype"], result["device"]) for result in results}) > 1:
        log.warning("evaluate: the reference was sampled in another dtype or on another device; force=true repeats it")
    print(f"\n{comparison(pd.DataFrame(results))}\n\n{experiment.folder}")


def _evaluate(experiment: Experiment) -> dict:
    folder = experiment.folder
    if result := experiment.files.result():
        log.info("evaluate: %s: done on %s (force=true repeats it)", folder, result["finished"])
        waited_for = SWEEP in os.environ and experiment.reference is not None  # by the sweep's agent
        if waited_for or wants_logging(folder):
            track(experiment, result)
        return result
    if not sample.complete(experiment):
        sample.run(experiment)
    with experiment.files.lock():
        if result := experiment.files.result():  # by another process, while this one waited
            return result
        (folder / RESULT).unlink(missing_ok=True)
        reference = experiment.reference.folder if experiment.reference else None
        data = SampleDataset(experiment.prompts.evaluation, folder, reference)
        task = Evaluation(metrics=experiment.metrics, data=data, folder=folder)
        experiment.trainer(precision="32-true").test(task, verbose=False)
        return _finish(experiment)


def _finish(experiment: Experiment) -> dict:
    folder = experiment.folder
    scores = json.loads((folder / "metrics.json").read_text())
    execution = json.loads((folder / EXECUTION).read_text())
    result = content(experiment, scores, execution)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(experiment.config())))
    write_json(folder / "manifest.json", manifest(result, execution))
    write_json(folder / RESULT, result)
    track(experiment, result)
    return result
