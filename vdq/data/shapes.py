"""The prompt sets of the built-in testbed."""

from __future__ import annotations

from vdq.data.prompts import PromptSet
from vdq.shapes.scenes import prompts, short_prompts


def sentences(num_prompts: int | None = None) -> PromptSet:
    """10 calibration and 48 evaluation captions, disjoint combinations."""
    return _first("shapes", prompts("evaluation"), num_prompts)


def labels(num_prompts: int | None = None) -> PromptSet:
    """101 short labels for evaluation; calibration captions as in ``sentences``."""
    return _first("shapes_short", short_prompts(), num_prompts)


def _first(name: str, evaluation: list[str], num_prompts: int | None) -> PromptSet:
    if num_prompts is not None and not 1 <= num_prompts <= len(evaluation):
        raise ValueError(f"dataset.num_prompts={num_prompts} must be null or 1..{len(evaluation)}")
    return PromptSet(name=name, calibration=prompts("calibration"), evaluation=evaluation[:num_prompts])
