"""What projections of one input have in common, and a stored model therefore holds once."""

import torch
from torch import Tensor, nn

from vdq.quant.layers import projections
from vdq.quant.params import LinearParams


def shift_owners(model: nn.Module, layers: dict[str, LinearParams]) -> dict[str, str]:
    """fqn of every layer with a shift -> fqn of the layer that stores it: the first one of the same input, where their
    tables are equal (on the meta device: of equal shape), else the layer itself.
    """
    owners: dict[str, str] = {}
    first: dict[str, str] = {}
    for p in projections(model):
        shift = layers[p.fqn].shift if p.fqn in layers else None
        if shift is not None:
            candidate = first.setdefault(p.input_fqn, p.fqn)
            owners[p.fqn] = candidate if _equal(layers[candidate].shift, shift) else p.fqn
    return owners


def _equal(a: Tensor, b: Tensor) -> bool:
    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return alike and (a.is_meta or torch.equal(a, b))
