"""The verbs, one file each. A stage reads artefacts and writes one; below this package nothing sees the
configuration.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import warnings

from omegaconf import DictConfig, OmegaConf

from vdq.stages.experiment import Experiment


def names() -> list[str]:
    """Every module of this package that has a ``run``: the allowed values of ``stages``."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "experiment")


def run(cfg: DictConfig) -> str:
    """Runs ``cfg.stages`` in their order; returns the name of the run folder. Raises ValueError on an unknown stage."""
    if not OmegaConf.is_list(cfg.stages) or not cfg.stages:
        raise ValueError(f"stages={cfg.stages} must be a list of stages, such as [sample,evaluate]")
    for stage in cfg.stages:
        if stage not in names():
            raise ValueError(f"stages={list(cfg.stages)} has the unknown stage {stage}; allowed: {', '.join(names())}")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # its advice on loaders and its own deprecations
    experiment = Experiment(cfg)
    experiment.check(cfg.stages)
    if cfg.force:
        experiment.forget(cfg.stages)
    for stage in cfg.stages:
        importlib.import_module(f"vdq.stages.{stage}").run(experiment)
    return experiment.folder.name
