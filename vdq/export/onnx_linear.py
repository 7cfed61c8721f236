"""A quantized linear layer as ONNX operators: QuantizeLinear, DequantizeLinear, MatMul.

While the denoiser is traced every quantized layer is one node of a domain of our own, which names the layer. Its
operators take that node's place afterwards, once for every graph, because graphs differ in the steps they serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from onnx import TensorProto
from torch import Tensor, nn

from vdq.backends.base import Backend
from vdq.backends.integer import BITS, unsupported
from vdq.errors import UserError
from vdq.quant.affine import code_range
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.linear import LayerSpec
from vdq.quant.parts import Correction, InputTransform, Shift, Smoothing, StaticActs

OPSET = 21  # the first whose DequantizeLinear and Cast know 4-bit integers
DOMAIN, OPERATOR = "vdq", "StaticLinear"
NIBBLE_BITS = 4
CENTRED_BITS = 7  # from so many on, weights are stored around the middle of their codes


def saturates(quant: LayerQuant) -> bool:
    """Whether sums of two products of a layer, of its input's codes and int8 weights, can leave 16 bits: x86 without
    VNNI adds so. Codes up to 127, or weights in -64..64, cannot.
    """
    return quant.weight.bits == quant.act.bits == BITS


class OnnxLinear(nn.Module):
    """x [a, ..., in] -> [a, ..., out] of at least three dimensions: ONNX Runtime makes a floating-point Gemm of a
    two-dimensional MatMul and its bias.
    """

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 3:
            raise UserError(f"layer {self.layer.fqn} got {x.dim()} dimensions, must be at least 3 to be exported")
        shape = (*x.shape[:-1], len(self.layer.weight))
        name = f"{DOMAIN}::{OPERATOR}"
        return torch.onnx.ops.symbolic(name, (x,), {"fqn": self.layer.fqn}, dtype=torch.float32, shape=shape, version=1)


class Pieces(Protocol):
    """What a layer adds to a graph that serves `steps`."""

    steps: list[int]

    def node(self, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
        """Adds a node; returns the name of its output."""

    def constant(self, name: str, make: Callable[[], Tensor], *, key: int | None = None, nibbles: bool = False) -> str:
        """Adds a tensor and returns its name. It is made at most once for all graphs: name and `key` fix its value.
        `nibbles`: integers 0..15, to be stored as uint4.
        """

    def per_step(self, name: str, values: Tensor) -> str:
        """Name of what is row `step` of `values` [N, ...] at run time."""


def expand(layer: LayerSpec, pieces: Pieces, x: str, y: str, *, zero_points: bool, unsigned: bool) -> None:
    """Adds the operators of one layer, from the input named `x` to the output named `y`.

    All steps of `pieces` have one weight range. Where `unsigned`, weights that could saturate are uint8 with a zero
    point. Others are int8; their zero points stay in DequantizeLinear where `zero_points`, else the weights are made
    symmetric and what is missing is added. The bias, a correction included, is fp32 and three-dimensional, see
    OnnxLinear.
    """
    fqn, set_ = layer.fqn, int(layer.quant.weight.steps[pieces.steps[0]])
    for transform in layer.quant.inputs:
        x = WRITERS[transform.kind](transform, fqn, pieces, x, set_)
    x = _quantized_input(layer.quant.act, fqn, pieces, x)
    weight, offset = _dequantized_weight(layer, pieces, set_, zero_points=zero_points, unsigned=unsigned)
    terms = []
    if offset is not None:
        sums = pieces.node("MatMul", [x, _ones(layer, pieces)], f"{fqn}.sums")
        terms.append(pieces.node("Mul", [sums, offset], f"{fqn}.corrections"))
    bias = None if layer.bias is None else layer.bias.detach().float().view(1, 1, -1)
    if (correction := layer.quant.part(Correction.kind)) is not None:
        corrections = correction.of_steps("values").float()[:, None, None]
        terms.append(pieces.per_step(f"{fqn}.bias", corrections if bias is None else corrections + bias))
    elif bias is not None:
        terms.append(pieces.constant(f"{fqn}.bias", lambda: bias))
    names = [f"{fqn}.product", f"{fqn}.corrected"][: len(terms)] + [y]
    result = pieces.node("MatMul", [x, weight], names[0])
    for term, name in zip(terms, names[1:], strict=True):
        result = pieces.node("Add", [result, term], name)


def _shifted(part: Shift, fqn: str, pieces: Pieces, x: str, set_: int) -> str:
    shift = pieces.per_step(f"{fqn}.shift", part.of_steps("values").float())
    return pieces.node("Sub", [x, shift], f"{fqn}.shifted")


def _smoothed(part: Smoothing, fqn: str, pieces: Pieces, x: str, set_: int) -> str:
    s = pieces.constant(f"{fqn}.smoothing", lambda: part.factors[set_], key=set_)
    return pieces.node("Div", [x, s], f"{fqn}.smoothed")


WRITERS: dict[str, Callable[[InputTransform, str, Pieces, str, int], str]] = {
    Shift.kind: _shifted,
    Smoothing.kind: _smoothed,
}


class OnnxBackend(Backend):
    """Static codes of 2..8 bits. Its layers stand for their operators in a traced graph and compute nothing."""

    name = "onnx_qdq"
    simulated = False
    parts = frozenset(WRITERS) | {"affine", "stored_codes", "static", "step_bits", "correction"}
    option = "export=onnx_qdq"

    def supports(self, layer: LayerSpec) -> str | None:
        return unsupported(layer)

    def build(self, layer: LayerSpec) -> OnnxLinear:
        return OnnxLinear(layer)

    def transformed(self, layer: LayerSpec) -> OnnxLinear:
        return self.build(layer)  # `expand` adds shift and correction


def _quantized_input(quantizer: StaticActs, fqn: str, pieces: Pieces, x: str) -> str:
    """x in unsigned 8-bit codes and back. Codes of fewer bits are kept inside their range by a clamp before."""
    act, (first, last) = quantizer.step_qparams(), quantizer.code_bounds()
    if quantizer.bits < BITS or quantizer.step_bits is not None:
        lower = pieces.per_step(f"{fqn}.act_lower", (first - act.zero_point) * act.scale)
        upper = pieces.per_step(f"{fqn}.act_upper", (last - act.zero_point) * act.scale)
        x = pieces.node("Clip", [x, lower, upper], f"{fqn}.clamped")
    scale = pieces.per_step(f"{fqn}.act_scale", act.scale)
    zero_point = pieces.per_step(f"{fqn}.act_zero_point", (act.zero_point - first).to(torch.uint8))
    codes = pieces.node("QuantizeLinear", [x, scale, zero_point], f"{fqn}.act_codes")
    return pieces.node("DequantizeLinear", [codes, scale, zero_point], f"{fqn}.act")


def _dequantized_weight(
    layer: LayerSpec, pieces: Pieces, set_: int, *, zero_points: bool, unsigned: bool
) -> tuple[str, str | None]:
    """Names of the weight [in, out] and of a vector [out] that, times the sum of a token's inputs, is missing in their
    product; None if nothing is.
    """
    fqn, quant = layer.fqn, layer.quant
    first, _ = code_range(quant.weight.bits, quant.weight.symmetric)
    scale, zero_point = (values[:, 0] for values in quant.weight.qparams(set_))
    zero_point = zero_point - first
    unsigned = unsigned and saturates(quant)
    middle = torch.zeros_like(zero_point) if unsigned else _middle(quant.weight.bits, zero_point)
    offset, dtype = middle - zero_point, torch.uint8 if unsigned else torch.int8

    def codes() -> Tensor:
        return quant.weight_codes(layer.weight, set_).T - first

    if quant.weight.bits <= NIBBLE_BITS:
        stored = _unpacked(fqn, pieces, codes, middle, set_)
    else:
        stored = pieces.constant(f"{fqn}.weight_codes", lambda: (codes() - middle).to(dtype), key=set_)
    inputs, missing = [stored, pieces.constant(f"{fqn}.weight_scale", lambda: scale, key=set_)], None
    if offset.any() and (zero_points or unsigned):
        inputs.append(pieces.constant(f"{fqn}.weight_zero_point", lambda: (-offset).to(dtype), key=set_))
    elif offset.any():
        missing = pieces.constant(f"{fqn}.weight_offset", lambda: offset * scale, key=set_)
    return pieces.node("DequantizeLinear", inputs, f"{fqn}.weight", axis=1), missing


def _middle(bits: int, zero_point: Tensor) -> Tensor:
    """What is taken from codes 0..2^bits - 1 so that they fit a signed byte, [out]: the zero point, which leaves no
    offset. Less that, weights of 7 bits could be 127 large, and would saturate (see `saturates`).
    """
    return zero_point if bits < CENTRED_BITS else torch.full_like(zero_point, 2 ** (bits - 1))


def _unpacked(fqn: str, pieces: Pieces, codes: Callable[[], Tensor], middle: Tensor, set_: int) -> str:
    """Codes stored in 4 bits, less `middle` [out], as int8: computed once, when the graph is loaded. Runtimes multiply
    bytes; a product with 4-bit weights would be one of floats.
    """
    stored = pieces.constant(f"{fqn}.weight_nibbles", codes, key=set_, nibbles=True)
    middles = pieces.constant(f"{fqn}.weight_middle", middle.int, key=set_)
    wide = pieces.node("Cast", [stored], f"{fqn}.weight_wide", to=TensorProto.INT32)
    signed = pieces.node("Sub", [wide, middles], f"{fqn}.weight_signed")
    return pieces.node("Cast", [signed], f"{fqn}.weight_codes", to=TensorProto.INT8)


def _ones(layer: LayerSpec, pieces: Pieces) -> str:
    """A weight of ones [in, 1], with which the inputs of a token are summed, in integers too."""
    name, in_features = f"{layer.fqn}.ones", layer.weight.shape[1]
    codes = pieces.constant(f"{name}_codes", lambda: torch.ones(in_features, 1, dtype=torch.int8))
    scale = pieces.constant(f"{name}_scale", lambda: torch.tensor(1.0))
    return pieces.node("DequantizeLinear", [codes, scale], name)
