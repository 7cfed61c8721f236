"""The paper's prompt sets: texts that others published, so they are not in this repository.

The defaults are downloaded once from ViDiT-Q's repository and must have the checksum of the files that were studied.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vdq.data.prompts import PromptSet, load_prompts
from vdq.errors import UserError
from vdq.sources import Download, find_download

COMMIT = "44126bdf8dd9d625078b7e0eacba60cd1b7015ae"
FOLDER = f"https://raw.githubusercontent.com/thu-nics/ViDiT-Q/{COMMIT}/t2v/assets/texts"


class File(NamedTuple):
    """A prompt file of ViDiT-Q and its SHA-256."""

    name: str
    sha256: str


CALIBRATION = File("t2v_samples_10.txt", "964e88f798bdef7c0bb1d5a75058db5536cfafc63e260259376657b5f8247a94")
OPENSORA = File("t2v_sora.txt", "5967d857d745295b7494df482d50749b4ca3c8439b3ff6b3fc9f9b46da37c53b")
UCF101 = File("prompt_ucf.txt", "309572effeaa91ba9370f689be41c853aadbd0fbe4c054e06b7673c82240a19d")


def opensora(
    cache: str, prompts: str | None = None, calibration_prompts: str | None = None, num_prompts: int | None = None
) -> PromptSet:
    """Open-Sora's 48 prompts for evaluation and its 10 sample prompts for calibration.

    ``prompts`` and ``calibration_prompts`` are files that take their place, one prompt a line; ``num_prompts`` keeps
    the first n of the evaluation. Raises UserError for a file that cannot be had or read, or n out of range.
    """
    return _prompt_set("opensora", OPENSORA, cache, prompts, calibration_prompts, num_prompts)


def ucf101(
    cache: str, prompts: str | None = None, calibration_prompts: str | None = None, num_prompts: int | None = None
) -> PromptSet:
    """One prompt for each of UCF-101's 101 classes; calibrated on Open-Sora's sample prompts as in ``opensora``."""
    return _prompt_set("ucf101", UCF101, cache, prompts, calibration_prompts, num_prompts)


def _prompt_set(
    name: str, file: File, cache: str, prompts: str | None, calibration_prompts: str | None, num_prompts: int | None
) -> PromptSet:
    if num_prompts is not None and num_prompts < 1:
        raise UserError(f"dataset.num_prompts={num_prompts} must be null or at least 1")
    fields = {"prompts": (prompts, file), "calibration_prompts": (calibration_prompts, CALIBRATION)}
    own = {field: load_prompts(path) for field, (path, _) in fields.items() if path}  # before anything is fetched
    texts = {
        field: own[field] if path else load_prompts(_downloaded(published, field, Path(cache)))
        for field, (path, published) in fields.items()
    }
    name = Path(prompts).stem if prompts else name
    found = PromptSet(name=name, calibration=texts["calibration_prompts"], evaluation=texts["prompts"])
    return found.first(num_prompts)


def _downloaded(file: File, field: str, cache: Path) -> Path:
    download = Download(f"dataset.{field}", f"{FOLDER}/{file.name}", file.sha256, megabytes=0.01)
    return find_download(download, None, cache / "prompts")
