"""The prompt sets of the built-in testbed."""

from __future__ import annotations

from vdq.data.prompts import PromptSet
from vdq.shapes.scenes import prompts, short_prompts


def sentences(num_prompts: int | None = None) -> PromptSet:
    """10 calibration and 48 evaluation captions, disjoint combinations."""
    return _prompt_set("shapes", prompts("evaluation")).first(num_prompts)


def labels(num_prompts: int | None = None) -> PromptSet:
    """101 short labels for evaluation; calibration captions as in ``sentences``."""
    return _prompt_set("shapes_short", short_prompts()).first(num_prompts)


def tuning(num_prompts: int | None = None) -> PromptSet:
    """192 captions to choose settings by, none of them in the other sets; calibration captions as in ``sentences``."""
    return _prompt_set("shapes_tuning", prompts("validation")).first(num_prompts)


def _prompt_set(name: str, evaluation: list[str]) -> PromptSet:
    return PromptSet(name=name, calibration=prompts("calibration"), evaluation=evaluation)
