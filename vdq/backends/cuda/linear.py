"""One quantized linear layer on the device, called with numbers or with codes that were made for it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vdq.backends.cuda.kernels import INTERPRETED
from vdq.backends.cuda.ops import int8_linear, quantize_tokens
from vdq.backends.cuda.weights import WeightSets
from vdq.backends.integer import IntegerLinear, smoothing_factors
from vdq.errors import UserError
from vdq.quant.affine import code_range
from vdq.quant.linear import LayerSpec
from vdq.quant.parts import TokenSharedActs
from vdq.quant.parts.base import ExactBuffers


class Codes(NamedTuple):
    """Codes int8 [M, in], their sums int32 [M] (empty where no layer needs them), for a dynamic layer scale fp32 and
    zero point int32 [M] of every token, else None; and the dtype of the numbers they stand for.
    """

    values: Tensor
    sums: Tensor
    scale: Tensor | None
    zero: Tensor | None
    dtype: torch.dtype


class Int8CudaLinear(IntegerLinear, ExactBuffers):
    """The step is read on the device: `divisor` [steps, in] (scale * s; s if dynamic, or nothing) and its reciprocal
    `factor`, `zero` and `x_scale` [steps] (static), `w_scale` [ranges, out] are tables, fp32 and int32 whatever the
    model's dtype; `sets` has the weights. `source` is the place, in the list of layers that share an input, of the
    first one with the same codes.
    """

    source: int | None = None

    def __init__(self, layer: LayerSpec, sets: WeightSets) -> None:
        super().__init__(layer)
        self.sets = sets
        self.symmetric, self.bits = self.quant.act.symmetric, self.quant.act.bits
        smoothing = smoothing_factors(layer.quant)
        tables = {
            "bias": None if layer.bias is None else layer.bias.detach().float().clone(),
            "divisor": None if smoothing is None else smoothing[self.quant.weight.steps],
            "zero": None,
            "x_scale": None,
            "weight_ranges": self.quant.weight.steps.int(),
            "w_scale": self.quant.weight.scale[:, :, 0].contiguous(),
        }
        if self.quant.act.static:
            scale, zero_point = self.quant.act.step_qparams()
            s = torch.ones(self.in_features, device=scale.device) if tables["divisor"] is None else tables["divisor"]
            first, _ = code_range(self.bits, self.symmetric)
            tables["divisor"] = scale[:, None] * s
            tables["zero"] = (zero_point - first).int() - 2 ** (self.bits - 1)
            tables["x_scale"] = scale
        tables["factor"] = None if tables["divisor"] is None else tables["divisor"].reciprocal()
        self.exact = tuple(tables)
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    # Rounding has no gradient.
    @torch.no_grad()
    def forward(
        self,
        x: Tensor | Codes,
        *,
        gelu: bool = False,
        residual: Tensor | None = None,
        gate: Tensor | None = None,
        following: "Int8CudaLinear | None" = None,
    ) -> Tensor | Codes:
        """x [..., in] -> [..., out] in its dtype; codes -> [M, out], or residual [M, out] + gate [samples, out] *
        output, or the codes for a static layer that follows.
        """
        if isinstance(x, Tensor):
            return self._run(self.codes(x), x.dtype)[0].reshape(*x.shape[:-1], self.out_features)
        if following is None:
            return self._run(x, x.dtype, gelu=gelu, residual=residual, gate=gate)[0]
        values, sums = self._run(
            x,
            torch.int8,
            gelu=gelu,
            next_factor=following.factor,
            next_zero=following.zero,
            next_bits=following.bits,
            next_sums=following.needs_sums,
        )
        return Codes(values, sums, None, None, x.dtype)

    def codes(self, x: Tensor) -> Codes:
        """The codes of x [..., in]."""
        groups = 0
        if isinstance(self.quant.act, TokenSharedActs):
            groups = self.token_rows.unfold(x).shape[0]
        return quantize(x.reshape(-1, self.in_features), [self], groups=groups)[0]

    @torch.no_grad()
    def accumulators(self, x: Tensor) -> Tensor:
        return self._run(self.codes(x), torch.int32)[0]

    def _run(self, x: Codes, dtype: torch.dtype, **options: Tensor | bool | int | None) -> tuple[Tensor, Tensor]:
        self.sets.ready()
        return int8_linear(
            x.values,
            x.sums,
            self.x_scale if x.scale is None else x.scale,
            self.zero if x.zero is None else x.zero,
            x.scale is not None,
            self.sets.table,
            self.sets.slots,
            self.weight_ranges,
            self.w_scale,
            self.sets.total,
            self.sets.offset,
            self.bias,
            self.clock.index,
            dtype,
            **options,
        )

    @property
    def needs_sums(self) -> bool:
        return self.sets.offset is not None

    @property
    def weight_bytes(self) -> int:
        return self.sets.nbytes


def quantize(
    x: Tensor,
    layers: Sequence[Int8CudaLinear],
    *,
    groups: int = 0,
    modulation: tuple[Tensor, Tensor] | None = None,
    swap: tuple[int, int] | None = None,
    position: Tensor | None = None,
) -> list[Codes]:
    """Codes of x [M, C] for layers of one kind and format, in one pass; layers with one `source` get the same tensors.

    groups: tokens that share a dynamic range, 0 for none. modulation: shift and scale [samples, C] of LayerNorm(x) * (1
    + scale) + shift. swap=(a, b): tokens [n, a, b] become [n, b, a]. position [a, C] is added first.
    """
    if x.device.type != "cuda" and not INTERPRETED:
        raise UserError(f"layer {layers[0].fqn} has an input on {x.device.type}, int8_cuda computes on cuda only")
    sources = [number if layer.source is None else layer.source for number, layer in enumerate(layers)]
    distinct = [layers[number] for number in sorted(set(sources))]
    first = distinct[0]
    shift, scale = modulation or (None, None)
    static = first.zero is not None
    tables = [layer.divisor if modulation is None else layer.factor for layer in distinct]
    parts = zip(
        *quantize_tokens(
            x.contiguous(),
            first.clock.index,
            tables if tables[0] is not None else [],
            [layer.zero for layer in distinct] if static else [],
            len(distinct),
            first.bits,
            first.symmetric,
            any(layer.needs_sums for layer in layers),
            groups,
            shift,
            scale,
            *(swap or (0, 0)),
            position,
        ),
        strict=True,
    )
    made = [Codes(q, sums, None if static else s, None if static else z, x.dtype) for q, sums, s, z in parts]
    return [made[sorted(set(sources)).index(source)] for source in sources]


def share_codes(layers: Sequence[Int8CudaLinear]) -> None:
    """Sets `source` of layers that get one input. Compares on the host, so once, when a block is made."""
    for number, layer in enumerate(layers):
        layer.source = next(i for i, other in enumerate(layers[: number + 1]) if _same_codes(other, layer))


def one_format(layers: Sequence[Int8CudaLinear]) -> bool:
    """Whether one pass of `quantize` can serve these layers."""
    formats = {(layer.quant.act.static, layer.symmetric, layer.bits, layer.divisor is None) for layer in layers}
    return len(formats) == 1


def _same_codes(one: Int8CudaLinear, other: Int8CudaLinear) -> bool:
    pairs = [(one.divisor, other.divisor), (one.zero, other.zero)]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)
