"""What a run is called, and the signatures of its artefacts.

A signature is a hash of what a result depends on. That of the statistics covers weights, sampler, calibration prompts
and seed; that of a run adds method, bits, backend and evaluation prompts. Each covers the versions of the code that
computes (`VERSION`, `version`), so that what a corrected bug had made is not found again. Loggers, trainers, the batch
size and what a class calls `unsigned` or, at its value, `neutral` are in none, and a class counts by its name, not by
its module. Nothing here reads weights.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from vdq.data import samples
from vdq.diffusion.timesteps import Timesteps, listed, same
from vdq.errors import UserError
from vdq.export import artefact, packed
from vdq.methods.base import INPUTS
from vdq.models.image_prompt import described
from vdq.quant import recorded_inputs, state, stats
from vdq.stages.components import Components
from vdq.stages.configuration import option, options, plain

SIGNATURE_LENGTH = 10
BITS = ("weight_bits", "act_bits")
SCHEDULES = {"sampler": ("steps",), "model": ("scheduler",)}  # fields that make another schedule


class Identity:
    """Name, signatures and versions of the run that these components make."""

    def __init__(self, components: Components) -> None:
        self._of = components

    @property
    def name(self) -> str:
        """Method, bits, integer backend and prompt set, as far as they apply; random weights are named first."""
        of = self._of
        return self.mark + "_".join(filter(None, (of.cfg.quant.name, self.bits, self.integer, of.prompts.name)))

    @property
    def mark(self) -> str:
        """What names of files of a model with random weights begin with."""
        return "random_weights_" if self._of.model.random else ""

    @property
    def bits(self) -> str:
        method = self._of.method
        return f"w{method.weight_bits}a{method.act_bits}" if method.quantizes else ""

    @property
    def integer(self) -> str:
        """The backend where it multiplies integers."""
        return self._of.backend.name if self._of.method.quantizes and not self._of.backend.simulated else ""

    @property
    def changed(self) -> str:
        """`changed_fields` of this configuration."""
        return changed_fields(self._of.cfg)

    @property
    def calibrates(self) -> bool:
        """Whether the method wants statistics of any layer."""
        return bool(self._of.needs)

    @property
    def records(self) -> bool:
        """Whether the method wants recorded inputs of layers as well."""
        return INPUTS in self._of.needs

    @cached_property
    def stats_signature(self) -> str:
        """The signature of the statistics."""
        return signature_of(
            self._sampling() | {"calibration": described(self._of.prompts.calibration), "version": stats.VERSION}
        )

    @cached_property
    def recorded_signature(self) -> str:
        """The signature of the recorded inputs."""
        return signature_of({"stats": self.stats_signature, "version": recorded_inputs.VERSION})

    @cached_property
    def signature(self) -> str:
        """The signature of the run."""
        of = self._of
        content = self._sampling() | {"evaluation": described(of.prompts.evaluation), "quant": signed(of.cfg.quant)}
        if of.method.quantizes:
            content |= {"backend": signed(of.cfg.backend), "versions": self.versions}
        if self.artefact is not None:
            files = self.artefact["files"].items()
            content["artefact"] = {name: facts["sha256"] for name, facts in files if name.endswith(".safetensors")}
        if self.calibrates:
            content["stats"] = self.stats_signature
        if of.method.depends_on_batch:
            content["batch_size"] = of.batch_size
        return signature_of(content)

    @property
    def metrics_signature(self) -> str:
        """The signature of the metrics' configuration, of the weights they use and of their versions."""
        metrics = self._of.metrics
        assets = [metric.assets for metric in metrics.values()]
        return signature_of({"metrics": signed(self._of.cfg.metrics), "assets": assets, "versions": self.judges})

    @cached_property
    def versions(self) -> dict[str, int]:
        """Versions of the code that makes the run's videos, by what it makes."""
        of = self._of
        found = {f"model.{of.cfg.model.name}": of.model.version, "samples": samples.VERSION}
        if of.method.quantizes:
            found |= {"quantization": state.VERSION, f"quant.{of.cfg.quant.name}": of.method.version}
            found |= {f"backend.{of.backend.name}": of.backend.version}
        if self.calibrates:
            found["statistics"] = stats.VERSION
        if self.records:
            found["recorded inputs"] = recorded_inputs.VERSION
        return found

    @property
    def judges(self) -> dict[str, int]:
        """Versions of the metrics, by their names in the configuration."""
        return {f"metrics.{name}": metric.version for name, metric in self._of.metrics.items()}

    @cached_property
    def artefact(self) -> dict[str, Any] | None:
        """The manifest of the artefact that is sampled instead of the model that this method makes.

        Raises UserError if it was made with another model, sampler or method, or for another schedule, unless
        quant.match says what to do about that.
        """
        cfg = self._of.cfg
        if cfg.artefact is None:
            return None
        manifest = artefact.read(cfg.artefact, packed.KIND, packed.VERSION)
        state = packed.planned(manifest["contents"])
        wanted = self._timesteps()
        if None in (wanted, state.timesteps):
            differs = wanted is None and self._of.match is not None
        else:
            differs = not same(state.timesteps, wanted)
        for group in ("model", "sampler", "quant"):
            ours, its = signed(cfg[group]), _counting(cfg[group], manifest["contents"]["config"][group])
            skipped = {"match", *(SCHEDULES.get(group, ()) if differs else ())}
            for key in sorted((ours.keys() | its.keys()) - skipped, key=lambda key: (key != "name", key)):
                if ours.get(key) != its.get(key):
                    raise UserError(
                        f"{group}.{key}={ours.get(key)} must be {its.get(key)}, as artefact={cfg.artefact} has it"
                    )
        if wanted is not None:
            try:
                state.serving(wanted, self._of.match)
            except UserError as error:
                raise UserError(f"artefact={cfg.artefact}: {error}") from None
        return manifest

    def _timesteps(self) -> Timesteps | None:
        """Of the schedule; None where the model only knows them after its prompts are encoded: loading the artefact
        then compares them.
        """
        try:
            return listed(self._of.model.timesteps(self._of.sampler))
        except UserError:
            return None

    def _sampling(self) -> dict[str, Any]:
        """What the full-precision videos of any prompts depend on."""
        of = self._of
        return {
            "weights": of.model.weights_sha256,
            "model": signed(of.cfg.model),
            "sampler": signed(of.cfg.sampler),
            "seed": of.cfg.seed,
            "versions": [of.model.version, samples.VERSION],
        }


def changed_fields(cfg: DictConfig) -> str:
    """The method's fields that differ from its file, in conf/quant or a folder of the user's: ``name=value``, or ``no
    name`` where the file has one more, and the artefact if one is used; bits are no difference.
    """
    if cfg.artefact is not None:
        match = cfg.quant.get("match")
        return f"artefact={cfg.artefact}" + (f", match={match}" if match else "")
    if cfg.quant.name not in options("quant"):
        return ""
    file = OmegaConf.create({"bits": cfg.bits, "alpha": cfg.alpha, "quant": option("quant", cfg.quant.name)})
    in_file = plain(file.quant)
    written, own = (_counting(in_file, quant) for quant in (in_file, plain(cfg.quant)))
    different = [f"{key}={value}" for key, value in own.items() if key not in BITS and written.get(key) != value]
    return ", ".join(different + [f"no {key}" for key in written if key not in own])


def signature_of(content: dict[str, Any] | list[Any]) -> str:
    """Hash of anything that JSON can hold."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:SIGNATURE_LENGTH]


def signed(cfg: DictConfig) -> dict[str, Any]:
    """The part of a configuration that results depend on.

    Of the arguments of a class or function those are left out that it calls `unsigned`: they say where things are or
    what is in memory, and change no number. So are those that have the value which it calls `neutral`: they came after
    results were made, and change nothing at that value.
    """
    return _signed(plain(cfg))


def _signed(node: Any) -> Any:
    if isinstance(node, list):
        return [_signed(value) for value in node]
    if not isinstance(node, dict):
        return node
    return {key: _signed(value) for key, value in _counting(node, node).items()}


def _counting(described: Any, node: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments `node` of the class that is `described` those that count."""
    kind = get_method(described["_target_"]) if "_target_" in described else None
    unsigned, neutral = getattr(kind, "unsigned", ()), getattr(kind, "neutral", {})
    kept = {key: value for key, value in node.items() if key not in unsigned}
    return _by_class({key: value for key, value in kept.items() if key not in neutral or value != neutral[key]})


def _by_class(node: dict[str, Any]) -> dict[str, Any]:
    """With the bare name of the class, whatever module it lies in."""
    return node | {"_target_": node["_target_"].rpartition(".")[2]} if "_target_" in node else node
