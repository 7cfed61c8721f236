"""A layer's numbers in one flat place: what tests make layers from, and what their oracles read."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vdq.quant.affine import QParams
from vdq.quant.codebook import Codebook
from vdq.quant.convert import affine_weights
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.parts import (
    AffineWeights,
    CodebookActs,
    Correction,
    FoldedRotation,
    LowRank,
    PerTokenActs,
    PerVideoActs,
    RotatedOutput,
    Rotation,
    Shift,
    Smoothing,
    StaticActs,
    StoredWeights,
    TokenGroupActs,
    TokenSharedActs,
)

NOTHING = {
    "weight_bits": 8,
    "act_bits": 8,
    "weight": None,
    "weight_range": None,
    "act": None,
    "act_range": None,
    "smoothing": None,
    "symmetric_weights": False,
    "symmetric_acts": False,
    "act_granularity": "per_token",
    "act_block": 1,
    "high_bits": None,
    "delta": None,
    "codes": None,
    "shift": None,
    "rotation": 0,
    "correction": None,
    "step_bits": None,
    "act_group": None,
    "codebook": None,
    "low_rank": None,
    "folded": False,
    "out_rotation": 0,
}


def layer_quant(**numbers: Any) -> LayerQuant:
    """The layer of these numbers. weight: QParams [Kw, out, 1], act: QParams [Ka] or [Ka, G]; weight_range, act_range:
    long [N], the row of every step, shift and correction have that of act, or of weight without; the others are named
    as the fields of parts.
    """
    flat = SimpleNamespace(**NOTHING | numbers)
    rows = flat.weight_range if flat.act_range is None else flat.act_range
    inputs = []
    if flat.shift is not None:
        inputs.append(Shift(values=flat.shift, steps=rows))
    if flat.smoothing is not None:
        inputs.append(Smoothing(factors=flat.smoothing, steps=flat.weight_range))
    if flat.rotation:
        inputs.append((FoldedRotation if flat.folded else Rotation)(block=flat.rotation))
    branches = [] if flat.low_rank is None else [flat.low_rank]
    if flat.correction is not None:
        branches.append(Correction(values=flat.correction, steps=rows))
    scale, zero_point = flat.weight
    weight = AffineWeights(
        bits=flat.weight_bits,
        symmetric=flat.symmetric_weights,
        scale=scale,
        zero_point=zero_point,
        steps=flat.weight_range,
    )
    return LayerQuant(
        inputs=tuple(inputs),
        weight=weight if flat.codes is None else weight.stored(flat.codes),
        act=_act(flat),
        branches=tuple(branches),
        outputs=(RotatedOutput(block=flat.out_rotation),) if flat.out_rotation else (),
    )


def flat(quant: LayerQuant) -> SimpleNamespace:
    """Inverse of `layer_quant`: every number by name."""
    weight, act = quant.weight, quant.act
    found = NOTHING | {
        "weight_bits": weight.bits,
        "act_bits": act.bits,
        "weight": QParams(weight.scale, weight.zero_point),
        "weight_range": weight.steps,
        "symmetric_weights": weight.symmetric,
        "codes": weight.codes if isinstance(weight, StoredWeights) else None,
        "low_rank": quant.part(LowRank.kind),
        "folded": quant.part(FoldedRotation.kind) is not None,
    }
    if isinstance(act, StaticActs):
        found |= {"act": QParams(act.scale, act.zero_point), "act_range": act.steps, "step_bits": act.step_bits}
        found |= {"act_group": act.group if isinstance(act, TokenGroupActs) else None}
    if isinstance(act, CodebookActs):
        found["codebook"] = Codebook(act.levels, act.edges)
        tables = [part.steps for part in quant.parts if isinstance(part, Shift | Correction)]
        found["act_range"] = tables[0] if tables else None
    if isinstance(act, PerVideoActs):
        found |= {"act_block": act.block, "high_bits": act.high_bits, "delta": act.delta}
    found["act_granularity"] = "per_token" if act.static else act.kind
    found["symmetric_acts"] = getattr(act, "symmetric", isinstance(act, PerVideoActs))
    for name, kind, field in (
        ("shift", Shift, "values"),
        ("smoothing", Smoothing, "factors"),
        ("rotation", Rotation, "block"),
        ("rotation", FoldedRotation, "block"),
        ("correction", Correction, "values"),
        ("out_rotation", RotatedOutput, "block"),
    ):
        if (part := quant.part(kind.kind)) is not None:
            found[name] = getattr(part, field)
    return SimpleNamespace(**found)


def changed(quant: LayerQuant, **numbers: Any) -> LayerQuant:
    """The layer with other numbers."""
    return layer_quant(**vars(flat(quant)) | numbers)


def weight_grid(
    weight: Tensor, smoothing: Tensor | None, *, bits: int, symmetric: bool = False, rotation: int = 0
) -> QParams:
    """Min-max grids [Kw, out, 1] of the smoothed and rotated weight."""
    steps = torch.arange(1 if smoothing is None else len(smoothing))
    inputs = [] if smoothing is None else [Smoothing(factors=smoothing, steps=steps)]
    inputs += [Rotation(block=rotation)] if rotation else []
    made = affine_weights(weight, steps, bits=bits, symmetric=symmetric, inputs=inputs)
    return QParams(made.scale, made.zero_point)


def _act(flat: SimpleNamespace) -> StaticActs | CodebookActs | PerTokenActs | PerVideoActs:
    if flat.codebook is not None:
        return CodebookActs(bits=flat.act_bits, levels=flat.codebook.levels, edges=flat.codebook.edges)
    form = {"bits": flat.act_bits, "symmetric": flat.symmetric_acts}
    if flat.act is not None:
        scale, zero_point = flat.act
        form |= {"scale": scale, "zero_point": zero_point, "steps": flat.act_range, "step_bits": flat.step_bits}
        return StaticActs(**form) if flat.act_group is None else TokenGroupActs(group=flat.act_group, **form)
    if flat.act_granularity == "per_video":
        switch = {"high_bits": flat.high_bits, "delta": flat.delta}
        return PerVideoActs(bits=flat.act_bits, block=flat.act_block, **switch)
    return {"per_token": PerTokenActs, "token_shared": TokenSharedActs}[flat.act_granularity](**form)
