"""Rotations that cost nothing at run time: the layer before hands its output over rotated.

Attention mixes the rows of its values and leaves their channels alone: rotated values give a rotated input of `proj`,
head by head. Keys and queries of one rotation have the products of those without. Blocks therefore divide the width of
a head.
"""

from typing import NamedTuple

from torch import nn

from vdq.models.stdit import CrossAttention, SelfAttention
from vdq.quant.rotation import fitting_block


class Fold(NamedTuple):
    """Blocks of the rotations at the ends of one layer, 0 for none: of its input, which arrives rotated, and of its
    output, which the layer has to rotate.
    """

    input: int = 0
    output: int = 0


def attention_folds(denoiser: nn.Module, block: int) -> list[dict[str, Fold]]:
    """Of every attention, the layers that have to be folded together, by fqn: blocks of at most `block` channels."""
    found = []
    for name, module in denoiser.named_modules():
        if not isinstance(module, SelfAttention | CrossAttention):
            continue
        size = fitting_block(module.proj.in_features // module.num_heads, block)
        before = ("v",) if isinstance(module, SelfAttention) else ("q_linear", "kv_linear")
        group = {f"{name}.{layer}": Fold(output=size) for layer in before}
        found.append(group | {f"{name}.proj": Fold(input=size)})
    return found
