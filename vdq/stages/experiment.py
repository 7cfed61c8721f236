"""One composed configuration: its components, its identity, its folder, and the experiments that differ from it in a
few fields.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vdq.stages.components import Components
from vdq.stages.configuration import option
from vdq.stages.identity import Identity
from vdq.stages.run_folder import RunFolder


class Experiment(Components):
    """The components of a configuration with what they are called and where their results lie."""

    encoded = False  # whether its prompts were (vdq.stages.compute.encode)

    @cached_property
    def identity(self) -> Identity:
        return Identity(self)

    @property
    def files(self) -> RunFolder:
        return RunFolder(Path(self.cfg.paths.runs), self.identity)

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.files.path

    @cached_property
    def reference(self) -> Experiment | None:
        """The full-precision run of the same prompts and noise; None if this is one."""
        return self.variant(quant="fp16") if self.method.quantizes else None

    def variant(self, *, fields: dict[str, Any] | None = None, **options: str) -> Experiment:
        """This experiment with other options of config groups, such as ``quant="asq"``, then other ``fields``, such as
        ``{"quant.alpha": 0.5}``, and with the same model.
        """
        cfg = self.cfg.copy()
        cfg.artefact = None  # it is of this method alone
        for group, name in options.items():
            cfg[group] = option(group, name)
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
