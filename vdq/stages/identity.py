"""What a run is called, and the signatures of its artefacts.

A signature is a hash of what a result depends on. That of the statistics covers weights, sampler, calibration prompts
and seed; that of a run adds recipe, bits, backend and evaluation prompts. Paths, loggers, trainers and the batch size
are in neither. Nothing here reads weights.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vdq.errors import UserError
from vdq.export import artefact, packed
from vdq.methods.base import SAMPLES
from vdq.stages.components import Components
from vdq.stages.configuration import CONF, plain

SIGNATURE_LENGTH = 10
BITS = ("weight_bits", "act_bits")
# Fields that say where things are and what is in memory, not what is computed; weights count by their content.
PLACES = {"weights", "revisions", "cache", "decode_frames", "weight_sets"}


class Identity:
    """Name and signatures of the run that these components make."""

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

    @cached_property
    def stats_signature(self) -> str:
        """Signature of the statistics and of the recorded inputs."""
        return signature_of(self._common() | {"calibration": self._of.prompts.calibration})

    @cached_property
    def signature(self) -> str:
        """Signature of the run."""
        of = self._of
        content = self._common() | {"quant": plain(of.cfg.quant), "evaluation": of.prompts.evaluation}
        if of.method.quantizes:
            content["backend"] = computed(of.cfg.backend)
        if self.artefact is not None:
            files = self.artefact["files"].items()
            content["artefact"] = {name: facts["sha256"] for name, facts in files if name.endswith(".safetensors")}
        if self.calibrates:
            content["stats"] = self.stats_signature
        if of.cfg.quant.get("token_granularity") == "token_shared":  # the rows of a batch share their scales
            content["batch_size"] = of.batch_size
        return signature_of(content)

    @property
    def metrics_signature(self) -> str:
        """Signature of the metrics' configuration and of the weights they use."""
        assets = [metric.assets for metric in self._of.metrics.values()]
        return signature_of({"metrics": computed(self._of.cfg.metrics), "assets": assets})

    @property
    def calibrates(self) -> bool:
        """Whether the method wants statistics of any layer."""
        return bool(self._of.needs)

    @property
    def records(self) -> bool:
        """Whether the method wants recorded inputs of layers as well."""
        return SAMPLES in self._of.needs

    @cached_property
    def artefact(self) -> dict[str, Any] | None:
        """The manifest of the artefact that is sampled instead of the model that this recipe makes.

        Raises UserError if it was made with another model, sampler or method.
        """
        cfg = self._of.cfg
        if cfg.artefact is None:
            return None
        manifest = artefact.read(cfg.artefact, packed.KIND, packed.VERSION)
        for group in ("model", "sampler", "quant"):
            ours, its = computed(cfg[group]), _without_places(manifest["contents"]["config"][group])
            for key in sorted(ours.keys() | its.keys(), key=lambda key: (key != "name", key)):
                if ours.get(key) != its.get(key):
                    raise UserError(
                        f"{group}.{key}={ours.get(key)} must be {its.get(key)}, as artefact={cfg.artefact} has it"
                    )
        return manifest

    def _common(self) -> dict[str, Any]:
        cfg = self._of.cfg
        return {
            "weights": self._of.model.weights_sha256,
            "model": computed(cfg.model),
            "sampler": plain(cfg.sampler),
            "seed": cfg.seed,
        }


def changed_fields(cfg: DictConfig) -> str:
    """The method's fields that differ from its file in conf/quant, as ``name=value``, or ``no name`` where the file has
    one more, and the artefact if one is used; bits are no difference.
    """
    if cfg.artefact is not None:
        return f"artefact={cfg.artefact}"
    path = CONF / "quant" / f"{cfg.quant.name}.yaml"
    if not path.is_file():
        return ""
    file = OmegaConf.create({"bits": cfg.bits, "alpha": cfg.alpha, "quant": OmegaConf.load(path)})
    written, own = plain(file.quant), plain(cfg.quant)
    different = [f"{key}={value}" for key, value in own.items() if key not in BITS and written.get(key) != value]
    return ", ".join(different + [f"no {key}" for key in written if key not in own])


def signature_of(content: dict[str, Any] | list[Any]) -> str:
    """Hash of anything that JSON can hold."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:SIGNATURE_LENGTH]


def computed(cfg: DictConfig) -> dict[str, Any]:
    """The part of a configuration that results depend on."""
    return _without_places(plain(cfg))


def _without_places(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return {key: _without_places(value) for key, value in node.items() if key not in PLACES}
