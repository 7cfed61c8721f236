"""Quantized layers as named tensors and JSON, which is how files hold them.

A tensor is named ``<fqn>.<kind>.<field>``. What a reader needs beside the tensors is a dict of three: `layers`, the
parts of every layer; `tensors`, [shape, dtype] of what is stored, by name; `same`, names of what is not, each with the
name that is stored for it (vdq.quant.sharing).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from vdq.diffusion.clock import BRANCHES
from vdq.errors import UserError
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import Projection, projections
from vdq.quant.linear import check_shapes
from vdq.quant.sharing import SharedTensors


class Kind(NamedTuple):
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> Kind:
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def stored_layer(
    p: Projection, quant: LayerQuant, shared: SharedTensors, written: dict[str, dict]
) -> Iterator[tuple[str, str, Tensor]]:
    """(name, label of its size, tensor) of all that is stored of a layer; what a reader needs goes to `written`."""
    written["layers"][p.fqn], same = quant.description(), shared.stored_as(p, quant)
    written["same"] |= {name: stored for name, stored in same.items() if stored != name}
    for part in quant.parts:
        for field, tensor in part.tensors().items():
            name = f"{p.fqn}.{part.kind}.{field}"
            if same[name] == name:
                written["tensors"][name] = list(Kind.of(tensor))
                yield name, part.label_of(field), tensor


def restored_layers(
    structure: nn.Module, contents: dict[str, Any], tensors: dict[str, Tensor], path: Path | str
) -> dict[str, LayerQuant]:
    """Makes the quantized layers again. Raises UserError, which begins with `path`, for one whose tensors do not fit it
    or each other.
    """
    named: dict[str, dict[str, Tensor]] = {fqn: {} for fqn in contents["layers"]}
    for name in (*contents["tensors"], *contents["same"]):
        fqn, kind, field = name.rsplit(".", 2)
        if (stored := contents["same"].get(name, name)) not in tensors or fqn not in named:
            raise UserError(f"{path} lacks tensor {stored}, which stands for {name}")
        named[fqn][f"{kind}.{field}"] = tensors[stored]
    weights = {p.fqn: p.weight for p in projections(structure)}
    layers = {}
    for fqn, description in contents["layers"].items():
        try:
            layers[fqn] = LayerQuant.restored(description, named[fqn])
            check_shapes(layers[fqn], *weights[fqn].shape)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: layer {fqn}: {error}") from error
        wanted = (len(BRANCHES) if layers[fqn].per_branch else 1) * contents["num_steps"]
        if layers[fqn].num_steps != wanted:
            raise UserError(f"{path}: layer {fqn} has {layers[fqn].num_steps} steps, must be {wanted}")
    return layers
