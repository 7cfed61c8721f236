"""What ``python run.py`` does with one composed configuration: the stages and commands that ``stages`` names.

Stages (vdq.stages.pipeline) make the artefacts of one run. Commands work with the results of many runs or of none, so
nothing pulls them: they follow the stages, in the order in which they are named.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from contextlib import nullcontext

from omegaconf import DictConfig, OmegaConf

from vdq.commands import without_effect
from vdq.errors import UserError
from vdq.processes import end_with_parent
from vdq.sources import without_network
from vdq.stages import pipeline
from vdq.stages.checks import check, fetch, reads_prompts
from vdq.stages.configuration import STAGES, forced
from vdq.stages.experiment import Experiment

COMMANDS = ("benchmark", "choose_alpha", "search_alpha", "tabulate")
READERS = {"choose_alpha", "tabulate"}  # of what finished runs left, and of nothing else


def run(cfg: DictConfig) -> str:
    """Makes what ``cfg.stages`` names; returns the name of the run folder, "" where no prompts name one. Raises
    UserError for an unknown name.
    """
    end_with_parent()  # one run of a sweep may be a worker's
    _check_stages(cfg)
    _quiet_lightning()
    with without_network() if set(cfg.stages) <= READERS else nullcontext():
        return _run(cfg)


def _run(cfg: DictConfig) -> str:
    experiment, options = Experiment(cfg), without_effect.explicit()
    without_effect.check(experiment, options)
    check(experiment, cfg.stages)
    without_effect.check_calibration(experiment, options)
    fetch(experiment, cfg.stages)
    if cfg.videos is not None:
        return importlib.import_module("vdq.commands.score_videos").run(experiment).name
    pipeline.forget(experiment, forced(cfg))
    pipeline.make(experiment, cfg.stages)
    for name in cfg.stages:
        if name in COMMANDS:
            importlib.import_module(f"vdq.commands.{name}").run(experiment)
    return experiment.folder.name if reads_prompts(experiment, cfg.stages) else ""


def _check_stages(cfg: DictConfig) -> None:
    """Raises UserError unless ``stages`` and the fields that belong to a folder of videos fit together."""
    if not OmegaConf.is_list(cfg.stages) or not cfg.stages:
        raise UserError(f"stages={cfg.stages} must be a list of stages, such as [sample,evaluate]")
    known = sorted((*STAGES, *COMMANDS))
    for name in cfg.stages:
        if name not in known:
            raise UserError(f"stages={list(cfg.stages)} has the unknown stage {name}; allowed: {', '.join(known)}")
    if cfg.videos is not None and list(cfg.stages) != ["evaluate"]:
        raise UserError(f"videos={cfg.videos} can only be scored: add 'stages=[evaluate]'")
    for field in ("prompts", "reference", "skip_bad"):
        if cfg.videos is None and cfg[field]:
            raise UserError(f"{field}={cfg[field]} belongs to a folder of videos; add videos=FOLDER")


def _quiet_lightning() -> None:
    """Silences what Lightning tells programmers: its greetings, offers, advice on loaders and own deprecations. That a
    GPU is not used is said by `vdq.stages.checks`.
    """
    # Not the package's own logger, whose level its import sets again, later than here.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
