"""The verbs, one file each. A stage reads artefacts and writes one; below this package nothing sees the
configuration.
"""

from __future__ import annotations

import importlib
import logging
import warnings

from omegaconf import DictConfig, OmegaConf

from vdq.errors import UserError
from vdq.processes import end_with_parent
from vdq.stages.checks import check
from vdq.stages.experiment import Experiment

STAGES = ("calibrate", "quantize", "sample", "evaluate", "export")
COMMANDS = ("benchmark", "choose_alpha", "search_alpha", "tabulate")


def names() -> list[str]:
    """The allowed values of ``stages``: what makes an artefact of a run, and commands that work with many runs."""
    return sorted((*STAGES, *COMMANDS))


def run(cfg: DictConfig) -> str:
    """Runs ``cfg.stages`` in their order; returns the name of the run folder. Raises UserError on an unknown stage."""
    end_with_parent()  # one run of a sweep may be a worker's
    if not OmegaConf.is_list(cfg.stages) or not cfg.stages:
        raise UserError(f"stages={cfg.stages} must be a list of stages, such as [sample,evaluate]")
    for stage in cfg.stages:
        if stage not in names():
            raise UserError(f"stages={list(cfg.stages)} has the unknown stage {stage}; allowed: {', '.join(names())}")
    _quiet_lightning()
    _check_folder(cfg)
    experiment = Experiment(cfg)
    check(experiment, cfg.stages)
    if cfg.videos is not None:
        return importlib.import_module("vdq.stages.videos").run(experiment).name
    if cfg.force:
        experiment.files.forget(cfg.stages)
    for stage in cfg.stages:
        for each in _with_yardstick(experiment, stage):
            importlib.import_module(f"vdq.stages.{stage}").run(each)
    return experiment.folder.name


def _quiet_lightning() -> None:
    """Silences what Lightning tells programmers: its greetings, offers, advice on loaders and own deprecations. That a
    GPU is not used is told by `vdq.stages.checks`.
    """
    # Not the package's own logger, whose level its import sets again, later than here.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")


def _with_yardstick(experiment: Experiment, stage: str) -> list[Experiment]:
    """The experiment, before it full precision with other noise if that is wanted beside full precision."""
    wanted = experiment.cfg.yardstick and not experiment.method.quantizes and stage in ("sample", "evaluate")
    return [experiment.variant(fields={"seed": experiment.cfg.seed + 1}), experiment] if wanted else [experiment]


def _check_folder(cfg: DictConfig) -> None:
    """Fields that belong together: a folder of videos is scored and nothing else."""
    if cfg.videos is not None and list(cfg.stages) != ["evaluate"]:
        raise UserError(f"videos={cfg.videos} can only be scored: add 'stages=[evaluate]'")
    for field in ("prompts", "reference", "skip_bad"):
        if cfg.videos is None and cfg[field]:
            raise UserError(f"{field}={cfg[field]} belongs to a folder of videos; add videos=FOLDER")
