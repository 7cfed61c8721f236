"""The objects of one composed configuration. Making them reads no weights; those of the model are read when a stage
computes with it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from vdq.backends.base import Backend
from vdq.benchmark.plan import Plan
from vdq.cli import check_types
from vdq.data.prompts import PromptSet
from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.export.base import Exporter
from vdq.methods.base import Method
from vdq.models.base import VideoModel
from vdq.quant.layers import projections
from vdq.stages import configuration
from vdq.stages.configuration import kept, made, made_of_what_is_here, options, plain

if TYPE_CHECKING:  # Lightning and torchmetrics take seconds to import, and only stages that compute need them
    import pytorch_lightning as pl

    from vdq.metrics.base import VideoMetric


# What Lightning's own hints say in other words, or allow beyond what a configuration can hold.
TRAINER = {"accelerator": str, "devices": int | str | list[int], "precision": int | str, "strategy": str}
MOST_DEVICES = 1024


class Components:
    """Sampler, method, backend, prompts, model, metrics, tracker, exporter, benchmark and trainer of a configuration.

    The first three are made at once, so that a wrong value is refused before any other is made, and the prompts unless
    they must be fetched; the others when they are first needed. Raises UserError.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        configuration.check(cfg)
        self.sampler: Sampler = made("sampler", cfg.sampler)
        self.method: Method = made("quant", cfg.quant)
        self.method.check(self.sampler.steps)
        self.keep = kept(cfg.quant)
        self.keep.of_steps(self.sampler.steps)
        self.backend: Backend = made("backend", cfg.backend)
        self._prompts = made_of_what_is_here("dataset", cfg.dataset)

    def config(self) -> dict[str, Any]:
        """The configuration, every value resolved."""
        return plain(self.cfg)

    @property
    def prompts(self) -> PromptSet:
        """Fetched if they must be."""
        self._prompts = self._prompts or made("dataset", self.cfg.dataset)
        return self._prompts

    @cached_property
    def model(self) -> VideoModel:
        return made("model", self.cfg.model)

    @cached_property
    def clock(self) -> StepClock:
        return StepClock(self.sampler.steps)

    @property
    def batch_size(self) -> int:
        """How many prompts are sampled together."""
        return self.cfg.batch_size or self.model.batch_size

    @cached_property
    def needs(self) -> frozenset[str]:
        """What the method wants of the calibration for any layer (vdq.methods.base.Method.needs); nothing if an
        artefact is sampled, which has used it already.
        """
        if self.cfg.artefact is not None:
            return frozenset()
        chosen = projections(self.model.structure, self.model.quantizable)
        return frozenset().union(*(self.method.needs(p.fqn) for p in chosen))

    @property
    def match(self) -> str | None:
        """What the parameters of an artefact do on another schedule (QuantState.serving)."""
        return self.cfg.quant.get("match")

    @cached_property
    def kept_layers(self) -> dict[str, str]:
        """The layers that quant.keep leaves in full precision, each with its pattern; reads no weights. Raises
        UserError for a pattern that matches no layer, and where all would be kept.
        """
        if not self.keep.layers:
            return {}
        return self.keep.of_layers(p.fqn for p in projections(self.model.structure, self.model.quantizable))

    @property
    def arithmetic(self) -> str:
        """What the quantized layers compute with, in words."""
        return self.backend.arithmetic if self.method.quantizes else "full precision"

    @cached_property
    def tracker(self) -> Any:
        return made("logger", self.cfg.logger)

    @cached_property
    def metrics_here(self) -> dict[str, VideoMetric | None]:
        """The metrics, None in place of those whose weights must be fetched."""
        return {name: made_of_what_is_here(f"metrics.{name}", metric) for name, metric in self.cfg.metrics.items()}

    @cached_property
    def metrics(self) -> dict[str, VideoMetric]:
        """Weights are fetched if they must be."""
        here = self.metrics_here.items()
        return {
            name: made(f"metrics.{name}", self.cfg.metrics[name]) if metric is None else metric for name, metric in here
        }

    @cached_property
    def benchmark(self) -> Plan:
        return made("benchmark", self.cfg.benchmark)

    @cached_property
    def exporter(self) -> Exporter:
        if self.cfg.get("export") is None:
            allowed = ", ".join(options("export"))
            raise UserError(f"export=null must say what 'stages=[export]' shall write; allowed: {allowed}")
        return made("export", self.cfg.export)

    def trainer(self, **overrides: Any) -> pl.Trainer:
        """A Trainer that only moves, runs and distributes: progress, logging and files are the stages' own."""
        from pytorch_lightning.utilities.exceptions import MisconfigurationException

        check_types("trainer.", plain(self.cfg.trainer), TRAINER)
        if isinstance(devices := self.cfg.trainer.get("devices"), int) and devices > MOST_DEVICES:
            raise UserError(f"trainer.devices={devices} must be at most {MOST_DEVICES}")
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        try:
            return instantiate(self.cfg.trainer, **dict.fromkeys(off, False), **overrides)
        except InstantiationException as error:
            cause = error.__cause__  # such as a GPU that is not there
            if isinstance(cause, (MisconfigurationException, TypeError)) and "unexpected keyword" not in str(cause):
                raise UserError(f"trainer: {str(cause).splitlines()[0]}") from error
            raise
