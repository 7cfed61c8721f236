"""Linear layers that execute quantization in floating point: integer codes, dequantized, then an ordinary matrix
product.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdq.diffusion.clock import StepClock
from vdq.quant.affine import fake_quantize, qparams_from_range, tensor_range
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.bit_switch import BitSwitch
from vdq.quant.low_rank import LowRank
from vdq.quant.params import Codebook, LinearParams
from vdq.quant.rotation import check_block, hadamard
from vdq.quant.transform import transform_input, video_rows


@dataclass(frozen=True, eq=False)
class LayerSpec:
    """What a backend gets to build one layer: the original weight [out, in] and bias [out] or None, and how to
    quantize them (on the same device, codes on the CPU). Raises ValueError when the parameters are of another shape.
    """

    fqn: str
    weight: Tensor
    bias: Tensor | None
    params: LinearParams
    clock: StepClock
    rows: BatchLayout
    switch: BitSwitch | None = None

    def __post_init__(self) -> None:
        p, shape = self.params, tuple(self.weight.shape)
        outs = {table.shape[1] for table in (p.weight.scale, p.correction) if table is not None}
        ins = {table.shape[1] for table in (p.smoothing, p.shift) if table is not None} or {shape[1]}
        for quantized in product(outs, ins):
            if quantized != shape:
                raise ValueError(f"layer {self.fqn} has shape {shape}, its quantization parameters are for {quantized}")
        if p.rotation:
            check_block(p.rotation, shape[1], f"layer {self.fqn}: rotation")
        if p.out_rotation:
            check_block(p.out_rotation, shape[0], f"layer {self.fqn}: out_rotation")

    def resolved(self) -> "LayerSpec":
        """The layer told without folds (LinearParams.resolved)."""
        rotation, bias = self.params.out_rotation, self.bias
        if rotation and bias is not None:
            bias = hadamard(bias.detach().float(), rotation).to(bias.dtype)
        return replace(self, bias=bias, params=self.params.resolved(self.weight))

    def plain(self) -> "LayerSpec":
        """The layer inside TransformedLinear (LinearParams.plain)."""
        return replace(self, params=self.params.plain(self.weight))


class ExactBuffers(nn.Module):
    """Base of modules whose buffers named in `exact` stay fp32 through dtype changes such as `.half()`."""

    exact: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExactBuffers":
        kept = {name: self._buffers[name] for name in self.exact}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self


class StepTable(ExactBuffers):
    """Called without arguments: the row of `values` [K, C] that `ranges` long [N] has for the clock's step, as fp32."""

    exact = ("values",)
    values: Tensor
    ranges: Tensor

    def __init__(self, values: Tensor, ranges: Tensor, clock: StepClock) -> None:
        super().__init__()
        self.clock = clock
        self.register_buffer("values", values)
        self.register_buffer("ranges", ranges)

    def forward(self) -> Tensor:
        return self.values.index_select(0, self.ranges.index_select(0, self.clock.index))[0].float()


class TransformedLinear(nn.Module):
    """A layer of any backend inside the transform of its input: inner(x') + low_rank(x') + correction
    (vdq.quant.transform, vdq.quant.low_rank).

    `inner` is built from LayerSpec.plain: with neither rotation nor low_rank it divides by s itself.
    """

    down: Tensor | None
    up: Tensor | None

    def __init__(self, layer: LayerSpec, inner: nn.Module) -> None:
        super().__init__()
        p, self.inner = layer.params, inner

        def table(values: Tensor | None, ranges: Tensor) -> StepTable | None:
            return None if values is None else StepTable(values, ranges, layer.clock)

        self.shift = table(p.shift, p.table_range)
        self.smoothing = table(p.smoothing if p.smooths_outside else None, p.weight_range)
        self.correction = table(p.correction, p.table_range)
        for name, matrix in zip(("down", "up"), p.low_rank or (None, None), strict=True):
            self.register_buffer(name, None if matrix is None else matrix.float())
        self.rotation, self.clock, self.variants = p.rotation, layer.clock, p.variants()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of x."""
        shift, smoothing, correction = (t and t() for t in (self.shift, self.smoothing, self.correction))
        transformed = transform_input(x, shift, smoothing, self.rotation)
        y = self.inner(transformed)
        if self.down is not None:
            y = y + LowRank(self.down, self.up)(transformed)
        return (y if correction is None else y + correction).to(x.dtype)

    @property
    def variant(self) -> int:
        """Which function of its input the layer is at the clock's step (LinearParams.variants)."""
        return self.variants[self.clock.step]

    def extra_repr(self) -> str:
        return f"rotation={self.rotation}"


class QuantLinear(ExactBuffers):
    """Base of the executable layers: y = fake_quantize(X / s) What^T + bias, What = dequantize(quantize(W * s)).

    `weights` is a module of vdq.quant.weight_sets, called for the What of the step. Dtype changes reach weights and
    bias only, the quantizer computes in fp32. Shift, rotation and correction are TransformedLinear's.
    """

    bias: Tensor | None

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__()
        self.clock, self.weights = layer.clock, weights
        self.out_features, self.in_features = layer.weight.shape
        self.weight_ranges = layer.params.num_weight_ranges
        self.variants = layer.params.variants()
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of the weights."""
        weight = self.weights()
        return F.linear(self.fake_quantize_input(x).to(weight.dtype), weight, self.bias)

    def fake_quantize_input(self, x: Tensor) -> Tensor:
        """Quantized and dequantized X / s, fp32."""
        raise NotImplementedError

    @property
    def variant(self) -> int:
        """Which function of its input the layer is at the clock's step (LinearParams.variants)."""
        return self.variants[self.clock.step]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"weight_ranges={self.weight_ranges}"
        )


class StaticLinear(QuantLinear):
    """Activation qparams fixed per step: the graph holds no reduction of an activation.

    Smoothing and scale are one division by `divisor` [N, in] = s * D. Codes are kept minus the zero point, so `grid`
    [N, 3] holds the clamp bounds first - z and last - z and the scale D.
    """

    exact = ("divisor", "grid")
    divisor: Tensor
    grid: Tensor

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__(layer, weights)
        params = layer.params
        scale, zero_point = params.step_act()
        first, last = params.step_code_range()
        s = params.step_smoothing()
        divisor = scale[:, None] if s is None else scale[:, None] * s
        self.register_buffer("divisor", divisor)
        self.register_buffer("grid", torch.stack([first - zero_point, last - zero_point, scale], 1))

    def fake_quantize_input(self, x: Tensor) -> Tensor:
        step = self.clock.index
        lower, upper, scale = self.grid.index_select(0, step)[0].unbind()
        codes = (x / self.divisor.index_select(0, step)[0]).round_()
        # In place, one bound at a time: fresh memory and clamp with two tensor bounds are several times slower on CPUs.
        return codes.clamp_min_(lower).clamp_max_(upper).mul_(scale)


class SmoothedLinear(QuantLinear):
    """Base of layers that divide by `smoothing` [N, in], s of every step or None, before they quantize."""

    exact = ("smoothing",)
    smoothing: Tensor | None

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__(layer, weights)
        self.register_buffer("smoothing", layer.params.step_smoothing())

    def smoothed(self, x: Tensor) -> Tensor:
        """X / s in fp32."""
        return x.float() if self.smoothing is None else x.float() / self.smoothing.index_select(0, self.clock.index)[0]


class GroupedLinear(SmoothedLinear):
    """Static, with qparams of their own for groups of token rows: `grid` [N, G, 3] is StaticLinear's for each group,
    `group` long [R] the group of every row of a video.
    """

    exact = ("smoothing", "grid")
    grid: Tensor
    group: Tensor

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__(layer, weights)
        params = layer.params
        scale, zero_point = params.step_act()
        first, last = (bound[:, None] for bound in params.step_code_range())
        self.register_buffer("grid", torch.stack([first - zero_point, last - zero_point, scale], 2))
        self.register_buffer("group", params.act_group)

    def fake_quantize_input(self, x: Tensor) -> Tensor:
        grid = self.grid.index_select(0, self.clock.index)[0].index_select(0, self.group)
        lower, upper, scale = grid[..., None].unbind(1)  # [R, 1]
        codes = (video_rows(self.smoothed(x), len(self.group)) / scale).round_()
        return codes.clamp_min_(lower).clamp_max_(upper).mul_(scale).reshape(x.shape)


class CodebookLinear(SmoothedLinear):
    """Static, with levels that need not be uniform (LinearParams.codebook)."""

    exact = ("smoothing", "levels", "edges")
    levels: Tensor
    edges: Tensor

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__(layer, weights)
        for name, values in layer.params.codebook._asdict().items():
            self.register_buffer(name, values)

    def fake_quantize_input(self, x: Tensor) -> Tensor:
        return Codebook(self.levels, self.edges)(self.smoothed(x))


class DynamicLinear(SmoothedLinear):
    """Activation qparams computed from every input, per token (the ViDiT-Q baseline, spec/quantization.md 2.4)."""

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__(layer, weights)
        params = layer.params
        self.granularity, self.rows = params.act_granularity, layer.rows
        self.bits, self.symmetric = params.act_bits_of_steps(), params.symmetric_acts

    def fake_quantize_input(self, x: Tensor) -> Tensor:
        smoothed = self.smoothed(x)
        tokens = self.rows.unfold(smoothed) if self.granularity == "token_shared" else smoothed
        format_ = {"bits": self.bits[self.clock.step], "symmetric": self.symmetric}
        qparams = qparams_from_range(*tensor_range(tokens, self.granularity), **format_)
        return fake_quantize(tokens, qparams, **format_).reshape(x.shape)


class FusedParts(nn.Module):
    """Stands where a fused linear stood: its projections one by one, each with its own quantization, as a tuple."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.children())
