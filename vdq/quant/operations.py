"""How many operations a call of the quantized denoiser takes, from its structure: what bit-widths alone do not tell."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import BRANCHES
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import linear_modules, projections
from vdq.quant.state import QuantState

FLOAT_BITS = 16  # of a floating-point operand, whatever type a simulation computes in


class Operations(NamedTuple):
    """Operations of linear layers in one call of the denoiser for one video, the mean over the steps; guidance makes
    two such calls a step.

    integer_macs: multiply-adds of codes. float_macs: multiply-adds in floating point, of low-rank branches and of
    layers in full precision. rotation_adds: additions of rotations at run time, log2(block) a channel. bit_operations:
    multiply-adds times the bits of both operands, floats counted with 16, and additions times 16 (as in Bayesian Bits,
    arXiv 2005.07093); None where activation bits are chosen while sampling and not given.

    Not counted, since every method has them: products of attention, the patch convolution and elementwise operations,
    among them what a quantizer does and what a dynamic one measures.
    """

    integer_macs: float = 0
    float_macs: float = 0
    rotation_adds: float = 0
    bit_operations: float | None = 0

    def plus(self, other: Operations) -> Operations:
        known = self.bit_operations is not None and other.bit_operations is not None
        sums = (a + b for a, b in zip(self[:3], other[:3], strict=True))
        return Operations(*sums, self.bit_operations + other.bit_operations if known else None)

    def times(self, factor: float) -> Operations:
        """So many of them."""
        bits = None if self.bit_operations is None else factor * self.bit_operations
        return Operations(*(factor * count for count in self[:3]), bits)


def layer_operations(
    quant: LayerQuant | None,
    shape: tuple[int, int],
    rows: int,
    act_bits: float | None = None,
    kept_steps: tuple[int, ...] = (),
) -> Operations:
    """Operations of a layer [out, in] on so many rows, None for one in full precision; act_bits: the mean where it is
    chosen while sampling. kept_steps: at which the layer is the original.
    """
    macs = shape[0] * shape[1] * rows
    exact = Operations(float_macs=macs, bit_operations=macs * FLOAT_BITS**2)
    if quant is None:
        return exact
    costs = [part.cost(rows, *shape) for part in quant.parts]
    branch, adds = (sum(column) for column in zip(*costs, strict=True))
    bits = quant.act.mean_bits_beside(kept_steps)
    bits = act_bits if bits is None else bits
    around = branch * FLOAT_BITS**2 + adds * FLOAT_BITS
    quantized = Operations(macs, branch, adds, None if bits is None else macs * quant.weight.bits * bits + around)
    if not kept_steps:
        return quantized
    share = len(kept_steps) * (len(BRANCHES) if quant.per_branch else 1) / quant.num_steps
    return quantized.times(1 - share).plus(exact.times(share))


def operations(
    denoiser: nn.Module, state: QuantState, rows: dict[str, int], act_bits: float | None = None
) -> dict[str, Operations]:
    """Operations of every linear projection by fqn: denoiser is the original, rows those of `call_rows`."""
    more = act_bits, state.kept_steps
    return {
        p.fqn: layer_operations(state.layers.get(p.fqn), tuple(p.weight.shape), rows[p.input_fqn], *more)
        for p in projections(denoiser)
    }


def quantized_operations(denoiser: nn.Module, state: QuantState, rows: dict[str, int]) -> dict[str, Operations]:
    """Operations of quantized layers alone, whose floating-point multiply-adds are those of branches."""
    return {fqn: each for fqn, each in operations(denoiser, state, rows).items() if fqn in state.layers}


def total(by_layer: dict[str, Operations]) -> Operations:
    """Operations of all layers together."""
    found = Operations()
    for each in by_layer.values():
        found = found.plus(each)
    return found


def call_rows(denoiser: nn.Module, example_inputs: Callable[[nn.Module], tuple[Tensor, ...]]) -> dict[str, int]:
    """Rows that every linear module gets in a call for one video, by fqn: from shapes alone, with all caption tokens.

    `example_inputs` gives the arguments of such a call, of a denoiser on the meta device.
    """
    net = copy.deepcopy(denoiser).to("meta")
    rows: dict[str, int] = {}

    def count(fqn: str, x: Tensor) -> None:
        rows[fqn] = x.shape[:-1].numel()

    for fqn, linear in linear_modules(net):
        linear.register_forward_pre_hook(lambda _, args, fqn=fqn: count(fqn, args[0]))
    with torch.no_grad():
        net(*example_inputs(net))
    return rows
