"""What is refused before anything is computed."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from vdq.benchmark.plan import SAMPLER
from vdq.errors import UserError
from vdq.export import artefact
from vdq.files import check_folder
from vdq.models.base import RANDOM
from vdq.stages.configuration import options
from vdq.stages.experiment import Experiment

if TYPE_CHECKING:
    import pytorch_lightning as pl

log = logging.getLogger(__name__)


def check(experiment: Experiment, stages: list[str]) -> None:
    """Raises UserError for what these stages cannot do, as far as the configuration alone tells.

    Cheap things first, the model last, of which nothing but its configuration is fetched; `fetch` does the rest.
    """
    cfg = experiment.cfg
    if {"calibrate", "sample", "evaluate"} & set(stages):
        trainer = experiment.trainer()
        _warn_of_unused_gpu(trainer)
        _warn_of_crowded_cores(trainer)
    if experiment.match is not None and cfg.artefact is None:
        raise UserError(f"quant.match={experiment.match} has no effect: only an artefact can be for another schedule")
    _ = experiment.identity.artefact
    if "export" in stages:
        experiment.exporter.check(experiment.method, experiment.sampler, experiment.backend)
        if experiment.keep.steps:
            steps = experiment.sampler.steps
            experiment.exporter.check_steps(experiment.keep.of_steps(steps), steps)
        if experiment.exporter.path is not None:
            artefact.check_place(Path(experiment.exporter.path))
    if set(stages) != {"export"}:  # an exporter has limits of its own
        _check_bits(experiment)
    experiment.backend.check_parts(experiment.method.parts())
    if "benchmark" in stages:
        experiment.benchmark.check_methods([name for name in options("quant") if name != "fp16"])
        if experiment.keep:
            raise UserError("'stages=[benchmark]' measures whole methods, quant.keep and quant.keep_steps must be []")
    if _scores(cfg, stages):
        experiment.tracker.check()
    for name in cfg.paths if "tabulate" in stages or cfg.tabulate else ["runs"]:
        check_folder(f"paths.{name}", cfg.paths[name])
    for group in ("model", "dataset", "metrics"):
        _check_caches(group, cfg[group])
    if cfg.videos is None:
        experiment.model.check(experiment.sampler)
        experiment.method.check_calls(experiment.model.family.calls_a_step)
        if "export" in stages:
            experiment.exporter.check_model(experiment.model)
        _ = experiment.kept_layers


def fetch(experiment: Experiment, stages: list[str]) -> None:
    """Makes the metrics and prompts of these stages and fetches their files; raises UserError if one cannot be had.

    What is here is looked at before anything is fetched.
    """
    scores = _scores(experiment.cfg, stages)
    if scores:
        _ = experiment.metrics_here
    if experiment.cfg.videos is None and reads_prompts(experiment, stages):
        _ = experiment.prompts
    if scores:
        _ = experiment.metrics


def reads_prompts(experiment: Experiment, stages: list[str]) -> bool:
    """Whether these stages read prompts; they may have to be fetched."""
    return set(stages) != {"benchmark"} or SAMPLER in experiment.benchmark.parts


def _scores(cfg: DictConfig, stages: list[str]) -> bool:
    """Whether metrics are taken. Of a model with random weights none is."""
    weights = cfg.model.get("weights")
    random = (OmegaConf.is_dict(weights) and RANDOM in weights.values()) or cfg.model.get("pretrained") == RANDOM
    return "evaluate" in stages and (cfg.videos is not None or not random)


def _check_caches(group: str, cfg: DictConfig) -> None:
    for name, value in cfg.items():
        if OmegaConf.is_dict(value):
            _check_caches(f"{group}.{name}", value)
        elif name == "cache" and isinstance(value, str):  # other types are refused where it is used
            check_folder(f"{group}.{name}", value)


def _check_bits(experiment: Experiment) -> None:
    method, backend = experiment.method, experiment.backend
    most = max(method.weight_bits, method.act_bits) if method.quantizes else 0
    if most > backend.most_bits:
        raise UserError(
            f"bits={experiment.identity.bits} has {most}-bit codes, must have at most {backend.most_bits} for "
            f"backend={backend.name}, whose products are of bytes"
        )


def _warn_of_crowded_cores(trainer: pl.Trainer) -> None:
    count, cores = trainer.world_size, os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and count > cores:
        log.warning("trainer.devices=%d: so many processes, each with a model, share %d cores", count, cores)


def _warn_of_unused_gpu(trainer: pl.Trainer) -> None:
    from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

    available = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    if available and isinstance(trainer.accelerator, CPUAccelerator):
        log.warning("trainer: this machine has a GPU that is not used; trainer=gpu uses it")
