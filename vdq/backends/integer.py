"""What the integer backends have in common: which layers they take, and the frame of a layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vdq.errors import UserError
from vdq.quant.affine import QParams, qparams_from_range, tensor_range
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.linear import LayerSpec
from vdq.quant.parts import ActQuantizer, AffineWeights, StaticActs, TokenGroupActs, TokenSharedActs
from vdq.quant.transform import video_rows

BITS = 8
# What a sum of products of codes can have as a factor beside it, or around it.
PARTS = frozenset({"affine", "stored_codes", "static", "per_branch", "per_token", "token_shared", "smoothing"})
AROUND = frozenset({"shift", "rotation", "low_rank", "correction"})
# An accumulator sums products of code differences, each at most 255 in size, and must stay inside 32 bits.
MAX_IN_FEATURES = (2**31 - 1) // 255**2


def too_wide(layer: LayerSpec) -> str | None:
    """Why a layer has no 8-bit codes or no 32-bit accumulators; None if it has."""
    for name, bits in (("weight_bits", layer.quant.weight.bits), ("act_bits", layer.quant.act.bits)):
        if bits > BITS:
            return f"{name}={bits} must be at most {BITS}, integer products are of bytes"
    if layer.weight.shape[1] > MAX_IN_FEATURES:
        return f"in_features={layer.weight.shape[1]} must be at most {MAX_IN_FEATURES}, else 32-bit sums overflow"
    return None


def unsupported(layer: LayerSpec) -> str | None:
    """Why a layer is too wide or not on the CPU; None if it can run."""
    if (reason := too_wide(layer)) is not None:
        return reason
    if layer.weight.device.type != "cpu":
        return f"its weight is on {layer.weight.device.type}, this backend runs on the CPU"
    return None


def signed_weight_bits(weight: AffineWeights) -> int:
    """Bits of the whole numbers w of `signed_weight`."""
    return weight.bits if weight.symmetric else min(weight.bits + 1, BITS)


def signed_weight(weight: Tensor, quant: LayerQuant, set_: int) -> tuple[Tensor, Tensor | None]:
    """Codes of one set less their zero points as w + offset, qw - zw: w int8 [out, in], offset fp32 [out], whole
    numbers, None where w alone holds the difference: symmetric weights, and any of at most 7 bits.
    """
    codes = quant.weight_codes(weight, set_)
    zero_point, end = quant.weight.qparams(set_).zero_point, 2 ** (signed_weight_bits(quant.weight) - 1)
    w = codes - zero_point
    if w.numel() == 0 or (w.amin() >= -end and w.amax() < end):
        return w.to(torch.int8), None
    middle = 2 ** (quant.weight.bits - 1)
    return (codes - middle).to(torch.int8), (middle - zero_point)[:, 0]


def one_grid(act: ActQuantizer) -> bool:
    """Whether all tokens of a step have one grid that is known before sampling."""
    return isinstance(act, StaticActs) and not isinstance(act, TokenGroupActs)


def integer_weight_bytes(model: nn.Module) -> int:
    """Memory that the integer layers of a model hold their weights in, those of all time ranges that they keep."""
    return sum(module.weight_bytes for module in model.modules() if isinstance(module, IntegerLinear))


class IntegerLinear(nn.Module):
    """Base of layers that multiply integers: y = D_x D_w acc + bias with acc = sum_i (qx_i - zx) (qw_i - zw).

    NaN has no code: what becomes of it is not defined.
    """

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.fqn, self.clock, self.quant, self.token_rows = layer.fqn, layer.clock, layer.quant, layer.rows
        self.out_features, self.in_features = layer.weight.shape
        self.variants = layer.quant.variants()

    def accumulators(self, x: Tensor) -> Tensor:
        """acc, integers [n, out], of the inputs x [..., in]: what every integer backend must agree on."""
        raise NotImplementedError

    @property
    def variant(self) -> int:
        """Which function of its input the layer is at the clock's step (LayerQuant.variants)."""
        return self.variants[self.clock.step]

    @property
    def weight_bytes(self) -> int:
        """Memory of the integer weights of all sets that are held."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"weight_sets={self.quant.weight.num_sets}, weight_bytes={self.weight_bytes}"
        )


class HostIntegerLinear(IntegerLinear):
    """Base of those that compute on the CPU. The step is read on the host (`clock.step`): a traced graph is that of one
    step.

    No constant is a parameter or a buffer, so casts of the model do not reach them: the layer computes in fp32 and
    returns the dtype of its input.
    """

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        self.bias = None if layer.bias is None else layer.bias.detach().float().clone()
        self.smoothing = smoothing_factors(layer.quant)
        self.ranges: list[int] = layer.quant.weight.steps.tolist()
        self.step_bits = layer.quant.act.bits_of_steps or [layer.quant.act.bits] * layer.quant.num_steps

    # Rounding has no gradient.
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of x."""
        return self.product(x).to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor) -> Tensor:
        """x [..., in] -> [n, out] fp32, n tokens."""
        raise NotImplementedError

    def token_qparams(self, smoothed: Tensor) -> QParams:
        """Qparams of X / s [..., in] fp32, one pair a token, each [n, 1]: those of its group if static, else of a range
        at run time.
        """
        act = self.quant.act
        if isinstance(act, TokenGroupActs):
            videos, step = len(video_rows(smoothed, len(act.group))), self.clock.step
            return QParams(*(values[step][act.group].repeat(videos)[:, None] for values in act.step_qparams()))
        tokens = self.token_rows.unfold(smoothed) if isinstance(act, TokenSharedActs) else smoothed
        lo, hi = (bound.expand(*tokens.shape[:-1], 1).reshape(-1, 1) for bound in tensor_range(tokens, act.kind))
        return qparams_from_range(lo, hi, bits=self.act_bits, symmetric=act.symmetric)

    @property
    def act_bits(self) -> int:
        """Activation bits at the clock's step."""
        return self.step_bits[self.clock.step]

    @property
    def range_(self) -> int:
        """The weight set of the clock's step."""
        return self.ranges[self.clock.step]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HostIntegerLinear":
        device = fn(torch.empty(0)).device.type
        if device != "cpu":
            raise UserError(f"layer {self.fqn} computes integers on the CPU and cannot move to {device}")
        return super()._apply(fn, recurse)


def smoothing_factors(quant: LayerQuant) -> Tensor | None:
    """Factors [Kw, in] of a layer that smooths and does nothing else to its input, or None."""
    return next((part.factors for part in quant.inputs), None)
