"""Layers that one set of bytes and one grid of activations describe, for formats that hold nothing else."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.methods.base import Method
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.parts import Smoothing
from vdq.quant.stats import LayerStats

PARTS = frozenset({"affine", "stored_codes", "smoothing", "static"})
BITS = 8
CHANNELS = 16  # of the layer that shows what a method makes


class Int8Layer(NamedTuple):
    """codes: int8 [out, in] of W'. weight_scale: fp32 [out], without zero points. act_scale, act_zero_point: fp32
    scalars, of codes -128..127. smoothing: fp32 [in], x' = x / smoothing, or None.
    """

    codes: Tensor
    weight_scale: Tensor
    act_scale: Tensor
    act_zero_point: Tensor
    smoothing: Tensor | None


def check_method(option: str, method: Method, sampler: Sampler, *, symmetric_acts: bool = False) -> None:
    """Raises UserError naming what of the method a format of one range cannot hold. Needs no model: a small layer shows
    what the method makes. symmetric_acts: whether the format has no zero points of activations.
    """
    if not method.quantizes:
        raise UserError(f"{option} writes quantized layers, quant=fp16 has none; quant=asq and quant=cw_tw are allowed")
    if others := sorted(method.parts() - PARTS):
        raise UserError(f"{option} cannot hold the part {others[0]} of this method; it holds {_words(PARTS)}")
    stats = LayerStats.empty(sampler.steps, CHANNELS).with_zeros()
    stats.min.fill_(-1), stats.max.fill_(2), stats.abs_sum.fill_(2), stats.rows.fill_(1)
    quant = method.layer(torch.eye(CHANNELS), stats, sampler.steps)
    if (reason := unfit(quant, symmetric_acts=symmetric_acts)) is not None:
        raise UserError(f"{option}: {reason}")


def unfit(quant: LayerQuant, *, symmetric_acts: bool = False) -> str | None:
    """Says in a sentence why these parts of a layer are not one set of bytes and one grid; None if they are."""
    weight, act = quant.weight, quant.act
    if others := sorted(quant.features - PARTS):
        return f"a layer has the part {others[0]}, must have no others than {_words(PARTS)}"
    for field, part in (("weight", weight), ("act", act)):
        if part.bits != BITS:
            return f"bits.{field}={part.bits} must be {BITS}, a code is stored in a byte"
    if weight.num_sets != 1 or act.num_ranges != 1:
        return (
            f"the method has {weight.num_sets} set(s) of weights and {act.num_ranges} range(s) of activations over the "
            "steps, must have one of each: nothing here can change with the step (quant=asq and quant=cw_tw have one)"
        )
    if not weight.symmetric:
        return "quant.symmetric_weights=false must be true, there is no place for zero points of weights"
    if symmetric_acts and not act.symmetric:
        return "quant.symmetric_acts=false must be true, there is no place for zero points of activations"
    return None


def int8_layer(fqn: str, quant: LayerQuant, weight: Tensor) -> Int8Layer:
    """Makes the bytes of a layer with this weight [out, in], on its device. Raises UserError for unfitting parts."""
    if (reason := unfit(quant)) is not None:
        raise UserError(f"layer {fqn}: {reason}")
    act, smoothing = quant.act, quant.part(Smoothing.kind)
    middle = 0 if act.symmetric else 2 ** (BITS - 1)
    return Int8Layer(
        codes=quant.weight_codes(weight, 0).to(torch.int8),
        weight_scale=quant.weight.qparams(0).scale[:, 0],
        act_scale=act.scale[0],
        act_zero_point=act.zero_point[0] - middle,
        smoothing=None if smoothing is None else smoothing.factors[0],
    )


def _words(parts: frozenset[str]) -> str:
    return ", ".join(sorted(parts))
