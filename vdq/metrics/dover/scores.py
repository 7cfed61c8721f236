"""Turns a branch's raw score into a percentage.

    VQA = 100 * sigmoid((raw - mean) / std)

Mean and standard deviation are those of the raw scores of some collection of videos, so percentages of different
constants cannot be compared. The scale is steep: at the middle, 0.001 of the raw technical score is 1.9 points.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch


class Spread(NamedTuple):
    """Mean and standard deviation of a branch's raw scores over a collection of videos."""

    mean: float
    std: float


CONSTANTS: dict[str, dict[str, Spread]] = {
    # 700 prompts' generated videos (EvalCrafter, arXiv 2310.11440); the paper's VQA-a and VQA-t.
    "evalcrafter": {"aesthetic": Spread(0.1253, 0.0318), "technical": Spread(-0.0758, 0.0129)},
    # LIVE-VQC. DOVER's program has them on the other branch since a change of names; here they are right.
    "dover": {"aesthetic": Spread(0.1107, 0.07355), "technical": Spread(-0.08285, 0.03774)},
}


def percentage(raw: float, branch: str, constants: str | Mapping[str, Spread] = "evalcrafter") -> float:
    """VQA of a branch's raw score, 0..100; `constants` is a key of CONSTANTS or has both branches itself."""
    mean, std = (CONSTANTS[constants] if isinstance(constants, str) else constants)[branch]
    return 100 * torch.sigmoid(torch.tensor((raw - mean) / std, dtype=torch.float64)).item()
