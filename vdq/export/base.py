"""The contract of an exporter: what it gets of a run, and the folder that it fills."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vdq.backends.base import Backend
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.methods.base import Method
from vdq.models.base import VideoModel
from vdq.quant.state import QuantState


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedRun:
    """A run whose parameters are decided.

    name, signature: of the run folder. model: the video model; denoiser: its own in full precision, in the dtype of the
    model on the CPU. state: how it is quantized. prompt: one that the model has prepared. config: the composed
    configuration as plain data; its groups model, quant, sampler and backend say with `_target_` what made the objects
    here.
    """

    name: str
    signature: str
    model: VideoModel
    denoiser: nn.Module
    state: QuantState
    sampler: Sampler
    backend: Backend
    config: dict[str, Any]
    prompt: str = ""


class Exporter(ABC):
    """Writes one kind of artefact. `_target_` in conf/export is the registry; `name` is the option's name, the name of
    the folder and the `kind` in its manifest. `path` is where the folder shall be, None: export/<name> in the run's.
    keeps_steps: whether the artefact can run some steps in full precision (QuantState.kept_steps).
    """

    name: str
    version: int  # of the folder's layout; a loader takes no other
    keeps_steps = False

    def __init__(self, *, path: str | None = None) -> None:
        self.path = path

    @property
    def choices(self) -> dict[str, Any]:
        """The entries of the manifest's contents that the options alone decide."""
        return {}

    @abstractmethod
    def check(self, method: Method, sampler: Sampler, backend: Backend) -> None:
        """Raises UserError with the reason if such a run cannot be exported. Called before any model is built."""

    def check_steps(self, kept: Sequence[int], num_steps: int) -> None:
        """Raises UserError when these of 0..N-1 cannot be steps in full precision. Called before any model is built."""
        if not self.keeps_steps:
            raise UserError(
                f"export={self.name} cannot run steps in full precision, quant.keep_steps={list(kept)} must be []; "
                "export=packed can"
            )

    def check_model(self, model: VideoModel) -> None:  # noqa: B027  (an exporter may take every model)
        """Raises UserError with the reason if such a model cannot be exported. Called before calibration; loads no
        weights.
        """

    @abstractmethod
    def write(self, run: QuantizedRun, folder: Path) -> dict[str, Any]:
        """Write every file into `folder`, which is there, empty and temporary, and return what the manifest shall hold
        beside their hashes: what a loader needs to know, as JSON. The caller writes the manifest and renames the
        folder. Raises UserError for what `check` could not see.
        """
