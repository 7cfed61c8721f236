"""What the stages of a run are, and in which order they follow each other."""

from __future__ import annotations

import importlib
from collections.abc import Collection

from vdq.stages.configuration import STAGES
from vdq.stages.experiment import Experiment


def make(experiment: Experiment, wanted: Collection[str]) -> None:
    """Makes the artefacts of these stages that are not there, and before each what it is made of."""
    for stage in STAGES:
        if stage in wanted:
            module = importlib.import_module(f"vdq.stages.{stage}")  # Lightning takes seconds to import
            for each in _with_reseeded(experiment, stage):
                module.run(each)


def forget(experiment: Experiment, stages: list[str]) -> None:
    """Removes what these stages made, so that `make` makes it again."""
    for each in _with_reseeded(experiment, "sample"):
        each.files.forget(stages)


def _with_reseeded(experiment: Experiment, stage: str) -> list[Experiment]:
    """The experiment, before it full precision with other noise if that is wanted beside full precision."""
    wanted = experiment.cfg.reseeded and not experiment.method.quantizes and stage in ("sample", "evaluate")
    return [reseeded(experiment), experiment] if wanted else [experiment]


def reseeded(experiment: Experiment) -> Experiment:
    """The run with the noise of the next seed, which shows what chance alone does."""
    return experiment.variant(fields={"seed": experiment.cfg.seed + 1})
