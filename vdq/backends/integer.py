"""What the integer backends have in common: which layers they take, and the frame of a layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vdq.errors import UserError
from vdq.quant.affine import QParams, qparams_from_range, tensor_range
from vdq.quant.linear import LayerSpec
from vdq.quant.params import LinearParams
from vdq.quant.transform import video_rows

BITS = 8
# What a sum of products of codes can have as a factor beside it, or around it.
PARTS = frozenset({"affine", "stored_codes", "static", "per_token", "token_shared", "smoothing"})
AROUND = frozenset({"shift", "rotation", "low_rank", "correction"})
# An accumulator sums products of code differences, each at most 255 in size, and must stay inside 32 bits.
MAX_IN_FEATURES = (2**31 - 1) // 255**2


def too_wide(layer: LayerSpec) -> str | None:
    """Why a layer has no 8-bit codes or no 32-bit accumulators; None if it has."""
    for name in ("weight_bits", "act_bits"):
        bits = getattr(layer.params, name)
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


def signed_weight_bits(params: LinearParams) -> int:
    """Bits of the whole numbers w of `signed_weight`."""
    return params.weight_bits if params.symmetric_weights else min(params.weight_bits + 1, BITS)


def signed_weight(weight: Tensor, params: LinearParams, range_: int) -> tuple[Tensor, Tensor | None]:
    """Codes of one range less their zero points as w + offset, qw - zw: w int8 [out, in], offset fp32 [out], whole
    numbers, None where w alone holds the difference: symmetric weights, and any of at most 7 bits.
    """
    codes = params.weight_codes(weight, range_)
    zero_point, end = params.weight_qparams(range_).zero_point, 2 ** (signed_weight_bits(params) - 1)
    w = codes - zero_point
    if w.numel() == 0 or (w.amin() >= -end and w.amax() < end):
        return w.to(torch.int8), None
    middle = 2 ** (params.weight_bits - 1)
    return (codes - middle).to(torch.int8), (middle - zero_point)[:, 0]


def integer_weight_bytes(model: nn.Module) -> int:
    """Memory that the integer layers of a model hold their weights in, those of all time ranges that they keep."""
    return sum(module.weight_bytes for module in model.modules() if isinstance(module, IntegerLinear))


class IntegerLinear(nn.Module):
    """Base of layers that multiply integers: y = D_x D_w acc + bias with acc = sum_i (qx_i - zx) (qw_i - zw).

    No constant is a parameter or a buffer, so casts of the model do not reach them: the layer computes in fp32 and
    returns the dtype of its input. The step is read on the host (`clock.step`): a traced graph is that of one step. NaN
    has no code: what becomes of it is not defined.
    """

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.fqn, self.clock, self.params, self.token_rows = layer.fqn, layer.clock, layer.params, layer.rows
        self.out_features, self.in_features = layer.weight.shape
        self.bias = None if layer.bias is None else layer.bias.detach().float().clone()
        self.ranges: list[int] = layer.params.weight_range.tolist()
        self.step_bits = layer.params.act_bits_of_steps()
        self.variants = layer.params.variants()

    # Rounding has no gradient.
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of x."""
        return self.product(x).to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor) -> Tensor:
        """x [..., in] -> [n, out] fp32, n tokens."""
        raise NotImplementedError

    def accumulators(self, x: Tensor) -> Tensor:
        """acc, integers [n, out], of the inputs x [..., in]: what every integer backend must agree on."""
        raise NotImplementedError

    def token_qparams(self, smoothed: Tensor) -> QParams:
        """Qparams of X / s [..., in] fp32, one pair a token, each [n, 1]: those of its group if static, else of a range
        at run time (spec/quantization.md 2.4).
        """
        p = self.params
        if p.act_group is not None:
            videos = len(video_rows(smoothed, len(p.act_group)))
            return QParams(*(values[self.clock.step][p.act_group].repeat(videos)[:, None] for values in p.step_act()))
        shared = p.act_granularity == "token_shared"
        tokens = self.token_rows.unfold(smoothed) if shared else smoothed
        lo, hi = (
            bound.expand(*tokens.shape[:-1], 1).reshape(-1, 1) for bound in tensor_range(tokens, p.act_granularity)
        )
        return qparams_from_range(lo, hi, bits=self.act_bits, symmetric=p.symmetric_acts)

    @property
    def act_bits(self) -> int:
        """Of the clock's step."""
        return self.step_bits[self.clock.step]

    @property
    def range_(self) -> int:
        """The weight range of the clock's step."""
        return self.ranges[self.clock.step]

    @property
    def variant(self) -> int:
        """Which function of its input the layer is at the clock's step (LinearParams.variants)."""
        return self.variants[self.clock.step]

    @property
    def weight_bytes(self) -> int:
        """Memory of the integer weights of all ranges that are held."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"weight_ranges={self.params.num_weight_ranges}, weight_bytes={self.weight_bytes}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "IntegerLinear":
        device = fn(torch.empty(0)).device.type
        if device != "cpu":
            raise UserError(f"layer {self.fqn} computes integers on the CPU and cannot move to {device}")
        return super()._apply(fn, recurse)
