"""Prompt files and prompt sets: one prompt a line, numbered by position, since the number decides a prompt's noise."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from torch.utils.data import Dataset

from vdq.errors import UserError
from vdq.models.image_prompt import ImagePrompt

logger = logging.getLogger(__name__)


def load_prompts(path: str | PathLike[str]) -> list[str]:
    """Prompts of a UTF-8 text file, one a line, in the file's order and without surrounding blanks; of a CSV with the
    columns prompt and image, ImagePrompts, whose images are named from the folder of the CSV.

    A byte order mark and CRLF line ends are no part of a prompt. Blank lines are dropped, duplicates kept (their noise
    differs); both are logged.

    Raises:
        UserError: if the file is missing, is not UTF-8 or holds no prompt, for an image that is none, and for a CSV
            with other columns.
    """
    if Path(path).suffix.lower() == ".csv":
        return _load_csv(Path(path))
    lines = _read_text(Path(path)).split("\n")
    # The end of the last line is no blank line.
    if lines[-1] == "":
        lines.pop()
    prompts = [stripped for line in lines if (stripped := line.strip())]
    if not prompts:
        raise UserError(f"prompt file {path} holds no prompt; one prompt a line is allowed")
    if len(prompts) < len(lines):
        logger.info("%s: dropped %d blank lines", path, len(lines) - len(prompts))
    repeated = [prompt for prompt, count in Counter(prompts).items() if count > 1]
    if repeated:
        logger.warning("%s: %d prompts occur more than once and are kept, such as %r", path, len(repeated), repeated[0])
    return prompts


def _load_csv(path: Path) -> list[str]:
    rows = csv.DictReader(io.StringIO(_read_text(path), newline=""), restkey="more", strict=True)
    try:
        prompts = list(rows)
    except csv.Error as error:
        raise UserError(f"prompt file {path} is no valid CSV at line {rows.line_num} ({error})") from error
    if rows.fieldnames is None or set(rows.fieldnames) != {"prompt", "image"}:
        raise UserError(f"prompt file {path} has the columns {rows.fieldnames}, a CSV must have prompt,image")
    if not prompts:
        raise UserError(f"prompt file {path} holds no prompt; one prompt a line is allowed")
    for number, row in enumerate(prompts, 2):
        if "more" in row or not all((row[name] or "").strip() for name in ("prompt", "image")):
            raise UserError(
                f"prompt file {path}: row {number} must be one prompt, in quotes if it holds a comma, and one image"
            )
    return [ImagePrompt(row["prompt"].strip(), path.parent / row["image"].strip()) for row in prompts]


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of one data set: `calibration` for the statistics, `evaluation` for the videos that are scored."""

    name: str
    calibration: list[str]
    evaluation: list[str]

    def __post_init__(self) -> None:
        for field in ("calibration", "evaluation"):
            if not getattr(self, field):
                raise UserError(f"{field} prompts of {self.name} are empty; at least one prompt is allowed")

    def first(self, num_prompts: int | None) -> "PromptSet":
        """The set with the first n evaluation prompts alone, None for all. Raises UserError for n out of range."""
        count = len(self.evaluation)
        if num_prompts is not None and not 1 <= num_prompts <= count:
            raise UserError(f"dataset.num_prompts={num_prompts} must be null or 1..{count}")
        return replace(self, evaluation=self.evaluation[:num_prompts])


class PromptDataset(Dataset[tuple[int, str]]):
    """(index, prompt) pairs; the index stays with its prompt through shuffling and distributed sampling."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts = list(prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> tuple[int, str]:
        return index, self.prompts[index]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"prompt file {path} cannot be read ({error.strerror}); a text file is allowed") from error
    except UnicodeDecodeError as error:
        raise UserError(f"prompt file {path} is not UTF-8 (byte {error.start}); only UTF-8 is allowed") from error
