"""Rotations that cost nothing at run time: the layer before hands its output over rotated.

Attention mixes the rows of its values and leaves their channels alone: rotated values give a rotated input of `proj`,
head by head. Keys and queries of one rotation have the products of those without. Blocks therefore divide the width of
a head.
"""

from typing import NamedTuple

from torch import nn

from vdq.errors import UserError
from vdq.models.family import family_of
from vdq.quant.rotation import fitting_block


class Fold(NamedTuple):
    """Blocks of the rotations at the ends of one layer, 0 for none: of its input, which arrives rotated, and of its
    output, which the layer has to rotate.
    """

    input: int = 0
    output: int = 0


def attention_folds(denoiser: nn.Module, block: int) -> list[dict[str, Fold]]:
    """For every attention the layers that have to be folded together, by fqn: blocks of at most `block` channels.

    Raises UserError for a denoiser whose attention nobody has described.
    """
    family = family_of(denoiser)
    if family is None or family.attention_groups is None:
        raise UserError(
            f"fold_rotation=true needs a model with known attention groups, {type(denoiser).__name__} has none"
        )
    found = []
    for group in family.attention_groups(denoiser):
        size = fitting_block(group.head_dim, block)
        found.append({fqn: Fold(output=size) for fqn in group.before} | {group.after: Fold(input=size)})
    return found
