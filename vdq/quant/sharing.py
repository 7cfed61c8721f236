"""What layers have in common, and a stored model therefore holds once."""

import torch
from torch import Tensor

from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import Projection
from vdq.quant.parts import Part


class SharedTensors:
    """Asked for the layers of a model one after another, says under which name each of their tensors is stored.

    Parts of one layer that have the very same tensor store it once. Layers of one input that have equal tables of a
    part which follows from the input alone (Part.of_input) store them with the first of these layers; on the meta
    device tables of equal shape count as equal.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], tuple[str, Part]] = {}  # by input and kind: the name and part that store

    def stored_as(self, p: Projection, quant: LayerQuant) -> dict[str, str]:
        """Full name ``fqn.kind.field`` of every tensor of the layer -> full name of the one that is stored for it."""
        found: dict[str, str] = {}
        first: dict[int, str] = {}
        for part in quant.parts:
            for field, tensor in part.tensors().items():
                name = f"{p.fqn}.{part.kind}.{field}"
                found[name] = self._of_input(p, part, field) or first.setdefault(id(tensor), name)
        return found

    def _of_input(self, p: Projection, part: Part, field: str) -> str | None:
        """The name that another layer stores this table under, or None."""
        if not part.of_input or field not in part.tables:
            return None
        fqn, stored = self._first.setdefault((p.input_fqn, part.kind), (p.fqn, part))
        return f"{fqn}.{part.kind}.{field}" if _equal(getattr(stored, field), getattr(part, field)) else None


def _equal(a: Tensor, b: Tensor) -> bool:
    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return alike and (a.is_meta or torch.equal(a, b))
