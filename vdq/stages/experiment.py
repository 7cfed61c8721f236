"""What one configuration means: its objects, its signatures and its run folder, each made when it is first needed.

A signature is a hash of what a result depends on. That of the statistics covers weights, sampler, calibration prompts
and seed; that of a run adds recipe, bits, backend and evaluation prompts. Paths, loggers, trainers and the batch size
are in neither.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from filelock import FileLock
from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from torch import nn

from vdq.backends.base import Backend
from vdq.benchmark.plan import Plan
from vdq.cli import check_types, unknown_field
from vdq.data.prompts import PromptSet
from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.export import artefact, packed
from vdq.export.base import Exporter
from vdq.files import check_folder
from vdq.installation import CONF
from vdq.methods.base import SAMPLES, Method
from vdq.models.base import RANDOM, VideoModel
from vdq.peak_memory import PeakMemory
from vdq.quant.layers import projections
from vdq.tracking.registry import RESULT

if TYPE_CHECKING:  # Lightning and torchmetrics take seconds to import, and only stages that compute need them
    import pytorch_lightning as pl

    from vdq.metrics.base import VideoMetric
    from vdq.tasks.generation import Generation

log = logging.getLogger(__name__)
SIGNATURE_LENGTH = 10
BITS = ("weight_bits", "act_bits")
TYPES = {
    "seed": int,
    "batch_size": int | None,
    "tabulate": bool,
    "yardstick": bool,
    "force": bool,
    "videos": str | None,
    "prompts": str | None,
    "reference": str | None,
    "skip_bad": bool,
    "artefact": str | None,
}
PLAIN_GROUPS = ("alpha", "bits", "paths")
# Fields that say where things are and what is in memory, not what is computed; weights count by their content.
PLACES = {"weights", "revisions", "cache", "decode_frames", "weight_sets"}


class Experiment:
    """Typed objects of one composed configuration.

    The cheap ones (sampler, recipe, backend, prompts) are made at once and `check` makes what the stages need, so that
    a wrong value is refused before any video model is built. Raises UserError.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        check_known(cfg)
        check_types("", {name: cfg[name] for name in TYPES}, TYPES)
        if cfg.batch_size is not None and cfg.batch_size < 1:
            raise UserError(f"batch_size={cfg.batch_size} must be null or at least 1")
        self.sampler: Sampler = _made("sampler", cfg.sampler)
        self.method: Method = _made("quant", cfg.quant)
        self.method.check(self.sampler.schedule.num_steps)
        self.backend: Backend = _made("backend", cfg.backend)
        self.prompts: PromptSet = _made("dataset", cfg.dataset)

    def check(self, stages: list[str]) -> None:
        """Makes what these stages will need; raises UserError if something is wrong with it.

        Cheap things first: what the configuration alone can tell is told before anything is loaded or fetched.
        """
        if {"calibrate", "sample", "evaluate"} & set(stages):
            trainer = self.trainer()
            _tell_unused_gpu(trainer)
            _tell_crowded_cores(trainer)
        _ = self.artefact
        if "export" in stages:
            self.exporter.check(self.method, self.sampler, self.backend)
        elif (
            self.method.quantizes
            and max(bits := (self.method.weight_bits, self.method.act_bits)) > self.backend.most_bits
        ):
            raise UserError(
                f"bits={self.bits} has {max(bits)}-bit codes, must have at most {self.backend.most_bits} for "
                f"backend={self.backend.name}, whose products are of bytes"
            )
        if "benchmark" in stages:
            recipes = [path.stem for path in (CONF / "quant").glob("*.yaml")]
            self.benchmark.check_recipes([name for name in recipes if name != "fp16"])
        weights = self.cfg.model.get("weights")
        random = OmegaConf.is_dict(weights) and RANDOM in weights.values()  # of which no metric is taken
        scores = "evaluate" in stages and (self.cfg.videos is not None or not random)
        if scores:
            self.tracker.check()
        check_folder("paths.runs", self.cfg.paths.runs)
        if "tabulate" in stages or self.cfg.tabulate:
            check_folder("paths.results", self.cfg.paths.results)
        if self.cfg.videos is None:
            given, channels = self.sampler.guidance_channels, self.model.latent_shape[0]
            if given > channels:
                raise UserError(
                    f"sampler.guidance_channels={given} must be in 0..{channels}, the channels of the latents of "
                    f"model={self.cfg.model.name}"
                )
        if scores:
            _ = self.metrics

    @cached_property
    def tracker(self) -> Any:
        return _made("logger", self.cfg.logger)

    @cached_property
    def metrics(self) -> dict[str, VideoMetric]:
        return {name: _made(f"metrics.{name}", metric) for name, metric in self.cfg.metrics.items()}

    @cached_property
    def benchmark(self) -> Plan:
        return _made("benchmark", self.cfg.benchmark)

    @cached_property
    def exporter(self) -> Exporter:
        if self.cfg.get("export") is None:
            allowed = sorted(path.stem for path in (CONF / "export").glob("*.yaml"))
            raise UserError(f"export=null must say what 'stages=[export]' shall write; allowed: {', '.join(allowed)}")
        return _made("export", self.cfg.export)

    @cached_property
    def artefact(self) -> dict[str, Any] | None:
        """The manifest of the artefact that is sampled instead of the model that this recipe makes."""
        if self.cfg.artefact is None:
            return None
        manifest = artefact.read(self.cfg.artefact, packed.KIND, packed.VERSION)
        for group in ("model", "sampler", "quant"):
            ours, its = _computed(self.cfg[group]), _without_places(manifest["contents"]["config"][group])
            for key in sorted(ours.keys() | its.keys(), key=lambda key: (key != "name", key)):
                if ours.get(key) != its.get(key):
                    raise UserError(
                        f"{group}.{key}={ours.get(key)} must be {its.get(key)}, as artefact={self.cfg.artefact} has it"
                    )
        return manifest

    @cached_property
    def model(self) -> VideoModel:
        return _made("model", self.cfg.model)

    @property
    def batch_size(self) -> int:
        """Prompts that are sampled together."""
        return self.cfg.batch_size or self.model.batch_size

    @cached_property
    def clock(self) -> StepClock:
        return StepClock(self.sampler.schedule.num_steps)

    @cached_property
    def calibrates(self) -> bool:
        """Whether the recipe wants statistics of any layer; an artefact has used them already."""
        return bool(self._needs)

    @property
    def records(self) -> bool:
        """Whether the recipe wants recorded inputs of layers as well."""
        return SAMPLES in self._needs

    @cached_property
    def _needs(self) -> frozenset[str]:
        if self.artefact is not None:
            return frozenset()
        names = [p.fqn for p in projections(self.model.structure)]
        return frozenset().union(*(self.method.needs(fqn) for fqn in names if self.model.quantizable(fqn)))

    @cached_property
    def stats_signature(self) -> str:
        return signature_of(self._common() | {"calibration": self.prompts.calibration})

    @cached_property
    def signature(self) -> str:
        content = self._common() | {"quant": _plain(self.cfg.quant), "evaluation": self.prompts.evaluation}
        if self.method.quantizes:
            content["backend"] = _computed(self.cfg.backend)
        if self.artefact is not None:
            files = self.artefact["files"].items()
            content["artefact"] = {name: facts["sha256"] for name, facts in files if name.endswith(".safetensors")}
        if self.calibrates:
            content["stats"] = self.stats_signature
        if self.cfg.quant.get("token_granularity") == "token_shared":  # the rows of a batch share their scales
            content["batch_size"] = self.batch_size
        return signature_of(content)

    @property
    def metrics_signature(self) -> str:
        """Of the metrics' configuration and the weights they use."""
        assets = [metric.assets for metric in self.metrics.values()]
        return signature_of({"metrics": _computed(self.cfg.metrics), "assets": assets})

    @property
    def stats_path(self) -> Path:
        return Path(self.cfg.paths.runs) / "cache" / f"stats_{self._mark}{self.stats_signature}.safetensors"

    @property
    def samples_path(self) -> Path:
        return Path(self.cfg.paths.runs) / "cache" / f"samples_{self._mark}{self.stats_signature}.safetensors"

    @property
    def folder(self) -> Path:
        return Path(self.cfg.paths.runs) / f"{self.name}_{self.signature}"

    @property
    def state_path(self) -> Path:
        return self.folder / "quant_state.safetensors"

    @property
    def name(self) -> str:
        """Recipe, bits, integer backend and prompt set, as far as they apply; random weights are told."""
        return self._mark + "_".join(filter(None, (self.cfg.quant.name, self.bits, self.integer, self.prompts.name)))

    @property
    def _mark(self) -> str:
        return "random_weights_" if self.model.random else ""

    @property
    def bits(self) -> str:
        return f"w{self.method.weight_bits}a{self.method.act_bits}" if self.method.quantizes else ""

    @property
    def integer(self) -> str:
        """The backend where it multiplies integers."""
        return self.backend.name if self.method.quantizes and not self.backend.simulated else ""

    @property
    def changed(self) -> str:
        """`changed_fields` of this configuration."""
        return changed_fields(self.cfg)

    @property
    def arithmetic(self) -> str:
        """What the quantized layers compute with, in words."""
        if not self.method.quantizes:
            return "full precision"
        return self.backend.arithmetic

    @cached_property
    def reference(self) -> Experiment | None:
        """The full-precision run of the same prompts and noise; None if this is one."""
        return self.variant(quant="fp16") if self.method.quantizes else None

    def variant(self, *, fields: dict[str, Any] | None = None, **options: str) -> Experiment:
        """This experiment with other options of config groups, such as ``quant="asq"``, then other ``fields``, such as
        ``{"quant.alpha": 0.5}``, and with the same model.
        """
        cfg = self.cfg.copy()
        cfg.artefact = None  # it is of this recipe alone
        for group, name in options.items():
            cfg[group] = _option(group, name)
        if "dataset" in options:
            same = cfg.dataset._target_ == self.cfg.dataset._target_
            kept = set(cfg.dataset) if same else {"num_prompts", "calibration_prompts"} & set(cfg.dataset)
            cfg.dataset.update({key: self.cfg.dataset[key] for key in kept})
        for name, value in (fields or {}).items():
            OmegaConf.update(cfg, name, value)
        return self.sibling(cfg)

    def sibling(self, cfg: DictConfig) -> Experiment:
        """The experiment of another configuration of the same model, with one set of weights in memory."""
        other = Experiment(cfg)
        other.__dict__["model"] = self.model
        return other

    @cached_property
    def denoiser(self) -> nn.Module:
        """The model's own, in full precision. Prompts are encoded first: their encoder may be larger still."""
        self.encode()
        return self.model.denoiser

    def encode(self) -> None:
        """Encodes the prompts of both sets that are new, and tells what the model cannot make of them."""
        for remark in self.model.remarks([*self.prompts.calibration, *self.prompts.evaluation]):
            log.warning("prompts: %s", remark)
        device = self.trainer().strategy.root_device
        start = time.monotonic()
        with PeakMemory(device) as peak:
            count = self.model.prepare([*self.prompts.calibration, *self.prompts.evaluation], device)
        if count:
            log.info("text: %d prompts encoded in %.0f s, at most %s", count, time.monotonic() - start, peak)

    def forget(self, stages: list[str]) -> None:
        """Removes what this run made in these stages and after them; statistics and the reference stay."""
        if not {"quantize", "sample", "evaluate"} & set(stages) or not self.folder.is_dir():
            return
        with FileLock(self.folder / ".lock"):
            (self.folder / RESULT).unlink(missing_ok=True)
            if {"quantize", "sample"} & set(stages):
                for path in self.folder.glob("**/*"):
                    if path.is_file() and path.name != ".lock":
                        path.unlink()

    def trainer(self, **overrides: Any) -> pl.Trainer:
        """A Trainer that only moves, runs and distributes: progress, logging and files are the stages' own."""
        from pytorch_lightning.utilities.exceptions import MisconfigurationException

        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        try:
            return instantiate(self.cfg.trainer, **dict.fromkeys(off, False), **overrides)
        except InstantiationException as error:
            if isinstance(error.__cause__, MisconfigurationException):  # such as a GPU that is not there
                raise UserError(f"trainer: {error.__cause__}") from error
            raise

    def predict(self, task: Generation) -> None:
        """Runs a task on the configured devices.

        A Trainer of half precision converts weights in place, so it gets copies: recipes start from the originals. A
        quantized denoiser is a copy already.
        """
        trainer = self.trainer()
        if trainer.world_size > task.most_devices:
            trainer = self.trainer(devices=task.most_devices)
        if trainer.precision != "32-true":
            own = (task.clock, task.denoiser) if task.denoiser is not self.denoiser else (task.clock,)
            memo = {id(part): part for part in own}
            task.model, task.denoiser = copy.deepcopy((task.model, task.denoiser), memo)
        trainer.predict(task, return_predictions=False)

    def config(self) -> dict[str, Any]:
        return _plain(self.cfg)

    def _common(self) -> dict[str, Any]:
        return {
            "weights": self.model.weights_sha256,
            "model": _computed(self.cfg.model),
            "sampler": _plain(self.cfg.sampler),
            "seed": self.cfg.seed,
        }


def _tell_crowded_cores(trainer: pl.Trainer) -> None:
    count, cores = trainer.world_size, os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and count > cores:
        log.warning("trainer.devices=%d: so many processes, each with a model, share %d cores", count, cores)


def _tell_unused_gpu(trainer: pl.Trainer) -> None:
    from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

    available = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    if available and isinstance(trainer.accelerator, CPUAccelerator):
        log.warning("trainer: this machine has a GPU that is not used; trainer=gpu uses it")


def changed_fields(cfg: DictConfig) -> str:
    """The recipe's fields that differ from its file in conf/quant, as ``name=value``, or ``no name`` where the file has
    one more, and the artefact if one is used; bits are no difference.
    """
    if cfg.artefact is not None:
        return f"artefact={cfg.artefact}"
    path = CONF / "quant" / f"{cfg.quant.name}.yaml"
    if not path.is_file():
        return ""
    file = OmegaConf.create({"bits": cfg.bits, "alpha": cfg.alpha, "quant": OmegaConf.load(path)})
    written, own = _plain(file.quant), _plain(cfg.quant)
    different = [f"{key}={value}" for key, value in own.items() if key not in BITS and written.get(key) != value]
    return ", ".join(different + [f"no {key}" for key in written if key not in own])


def check_known(cfg: DictConfig) -> None:
    """Raises UserError for a field that nothing reads, which ``+name=value`` can add.

    Objects check the arguments that they are made of themselves; here are the top level and groups of plain values.
    """
    groups = {path.name: path for path in CONF.iterdir() if path.is_dir()}
    written = [CONF / "config.yaml", *groups["experiment"].glob("*.yaml")]  # experiments may name parts of their sweeps
    top = {str(key) for path in written for key in OmegaConf.load(path)} | set(groups)
    top -= {"defaults", "hydra", "experiment", "debug"}
    for name in cfg:
        if name not in top:
            raise UserError(unknown_field(str(name), [], sorted(top)))
    for group in PLAIN_GROUPS:
        fields = {str(key) for path in groups[group].glob("*.yaml") for key in OmegaConf.load(path)}
        for name in cfg[group]:
            if name not in fields:
                raise UserError(unknown_field(f"{group}.{name}", [group], sorted(fields)))
    for name, metric in cfg.metrics.items():
        if not OmegaConf.is_dict(metric) or "_target_" not in metric:
            raise UserError(f"metrics.{name}={metric} must be a metric: a mapping with _target_, as in conf/metrics")


def intact(load: Callable[..., object], *arguments: object) -> bool:
    """Whether an artefact is there and can be read. A damaged one is logged; the stage then makes it again."""
    try:
        load(*arguments)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        log.warning("%s cannot be read (%s); it is made again", " ".join(map(str, arguments)), error)
        return False
    return True


def _made(group: str, cfg: DictConfig) -> Any:
    """The object of a config group. ``name``, which options carry for folders and tables, is no argument of it."""
    arguments = {key: value for key, value in _plain(cfg).items() if key != "name"}
    target = get_method(cfg._target_)
    check_types(f"{group}.", arguments, get_type_hints(target.__init__ if isinstance(target, type) else target))
    tree = OmegaConf.create()
    OmegaConf.update(tree, group, arguments)  # errors then name the field as the user wrote it
    return instantiate(OmegaConf.select(tree, group))


def _option(group: str, name: str) -> DictConfig:
    """The content of conf/group/name.yaml with that of the options that it extends."""
    cfg = OmegaConf.load(CONF / group / f"{name}.yaml")
    parents = [_option(group, parent) for parent in cfg.pop("defaults", []) if parent != "_self_"]
    return OmegaConf.merge(*parents, cfg)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)


def _computed(cfg: DictConfig) -> dict[str, Any]:
    return _without_places(_plain(cfg))


def _without_places(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return {key: _without_places(value) for key, value in node.items() if key not in PLACES}


def signature_of(content: dict[str, Any] | list[Any]) -> str:
    """Hash of anything that JSON can hold."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:SIGNATURE_LENGTH]
