"""Where the artefacts of a run are, and what of them is there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from vdq.stages.identity import Identity
from vdq.tracking.registry import RESULT, read_result

log = logging.getLogger(__name__)
SAMPLED_FOLDERS = {"samples", "videos", "schedules"}
SAMPLED_FILES = {"sampling.json", "act_bits.png"}
LOGGED = "wandb"
FORGOTTEN: set[Path] = set()  # statistics that this process was to make again


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run below ``runs``, and its files in ``runs``/cache, which other runs share."""

    runs: Path
    identity: Identity

    @property
    def path(self) -> Path:
        return self.runs / f"{self.identity.name}_{self.identity.signature}"

    @property
    def state(self) -> Path:
        """The quantization state."""
        return self.path / "quant_state.safetensors"

    @property
    def stats(self) -> Path:
        """The statistics of the calibration."""
        return self.runs / "cache" / f"stats_{self.identity.mark}{self.identity.stats_signature}.safetensors"

    @property
    def recorded(self) -> Path:
        """The recorded inputs of layers."""
        return self.runs / "cache" / f"samples_{self.identity.mark}{self.identity.recorded_signature}.safetensors"

    def lock(self) -> FileLock:
        """Keeps other processes from writing into the folder, which is made if it is not there."""
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / ".lock")

    def result(self) -> dict | None:
        """The result, if the run was finished with the same metrics."""
        result = read_result(self.path)
        return result if result and result["metrics"] == self.identity.metrics_signature else None

    def forget(self, stages: list[str]) -> None:
        """Removes what these stages made of this run, and what was made of that; the reference stays."""
        if "calibrate" in stages:
            self._forget_statistics()
        if not set(stages) - {"export"} or not self.path.is_dir():
            return
        with self.lock():
            if {"calibrate", "quantize"} & set(stages):
                shutil.rmtree(self.path / "export", ignore_errors=True)
            for path in self.path.glob("**/*"):
                if path.is_file() and path.name != ".lock" and self._is_of(path, stages):
                    path.unlink()

    def _forget_statistics(self) -> None:
        """Once in a process: the runs of a sweep share them."""
        for path in {self.stats, self.recorded} - FORGOTTEN:
            with FileLock(path.with_suffix(".lock")):
                path.unlink(missing_ok=True)
            FORGOTTEN.add(path)

    def _is_of(self, path: Path, stages: list[str]) -> bool:
        """Whether a file was made in one of these stages or after it; what was logged is a record and stays."""
        if LOGGED in path.relative_to(self.path).parts:
            return False
        if {"calibrate", "quantize"} & set(stages):
            return True
        made_by_sampling = path.parent.name in SAMPLED_FOLDERS or path.name in SAMPLED_FILES
        return path.name == RESULT or ("sample" in stages and made_by_sampling)


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
