"""What is refused before anything is computed."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from vdq.errors import UserError
from vdq.files import check_folder
from vdq.models.base import RANDOM
from vdq.stages.configuration import options
from vdq.stages.experiment import Experiment

if TYPE_CHECKING:
    import pytorch_lightning as pl

log = logging.getLogger(__name__)


def check(experiment: Experiment, stages: list[str]) -> None:
    """Makes what these stages will need; raises UserError if something is wrong with it.

    Cheap things first: what the configuration alone can tell is told before anything is loaded or fetched.
    """
    cfg = experiment.cfg
    if {"calibrate", "sample", "evaluate"} & set(stages):
        trainer = experiment.trainer()
        _warn_of_unused_gpu(trainer)
        _warn_of_crowded_cores(trainer)
    _ = experiment.identity.artefact
    if "export" in stages:
        experiment.exporter.check(experiment.method, experiment.sampler, experiment.backend)
    else:
        _check_bits(experiment)
    experiment.backend.check_parts(experiment.method.parts())
    if "benchmark" in stages:
        experiment.benchmark.check_recipes([name for name in options("quant") if name != "fp16"])
    weights = cfg.model.get("weights")
    random = OmegaConf.is_dict(weights) and RANDOM in weights.values()  # of which no metric is taken
    scores = "evaluate" in stages and (cfg.videos is not None or not random)
    if scores:
        experiment.tracker.check()
    check_folder("paths.runs", cfg.paths.runs)
    if "tabulate" in stages or cfg.tabulate:
        check_folder("paths.results", cfg.paths.results)
    if cfg.videos is None:
        _check_guidance(experiment)
    if scores:
        _ = experiment.metrics


def _check_bits(experiment: Experiment) -> None:
    method, backend = experiment.method, experiment.backend
    most = max(method.weight_bits, method.act_bits) if method.quantizes else 0
    if most > backend.most_bits:
        raise UserError(
            f"bits={experiment.identity.bits} has {most}-bit codes, must have at most {backend.most_bits} for "
            f"backend={backend.name}, whose products are of bytes"
        )


def _check_guidance(experiment: Experiment) -> None:
    given, channels = experiment.sampler.guidance_channels, experiment.model.latent_shape[0]
    if given > channels:
        raise UserError(
            f"sampler.guidance_channels={given} must be in 0..{channels}, the channels of the latents of "
            f"model={experiment.cfg.model.name}"
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
