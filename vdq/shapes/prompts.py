"""The prompt sets of the built-in testbed, and the user's own prompts for it."""

from __future__ import annotations

from pathlib import Path

from vdq.data.prompts import PromptSet, load_prompts
from vdq.shapes import scenes


def sentences(
    prompts: str | None = None, calibration_prompts: str | None = None, num_prompts: int | None = None
) -> PromptSet:
    """10 calibration and 48 evaluation captions, disjoint combinations.

    ``prompts`` and ``calibration_prompts`` are files that take their place, one prompt a line; ``num_prompts`` keeps
    the first n of the evaluation. Raises UserError for a file that cannot be read, or n out of range.
    """
    return _prompt_set("shapes", scenes.prompts("evaluation"), prompts, calibration_prompts, num_prompts)


def labels(
    prompts: str | None = None, calibration_prompts: str | None = None, num_prompts: int | None = None
) -> PromptSet:
    """101 short labels for evaluation; otherwise as ``sentences``."""
    return _prompt_set("shapes_short", scenes.short_prompts(), prompts, calibration_prompts, num_prompts)


def tuning(
    prompts: str | None = None, calibration_prompts: str | None = None, num_prompts: int | None = None
) -> PromptSet:
    """192 captions to choose settings by, none of them in the other sets; otherwise as ``sentences``."""
    return _prompt_set("shapes_tuning", scenes.prompts("validation"), prompts, calibration_prompts, num_prompts)


def _prompt_set(
    name: str, own: list[str], prompts: str | None, calibration_prompts: str | None, num_prompts: int | None
) -> PromptSet:
    return PromptSet(
        name=Path(prompts).stem if prompts else name,
        calibration=load_prompts(calibration_prompts) if calibration_prompts else scenes.prompts("calibration"),
        evaluation=load_prompts(prompts) if prompts else own,
    ).first(num_prompts)
