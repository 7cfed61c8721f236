"""Linear layers that execute quantization in floating point: integer codes, dequantized, then an ordinary matrix
product.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdq.diffusion.clock import StepClock
from vdq.quant.affine import code_range, fake_quantize, qparams_from_range, tensor_range
from vdq.quant.state import LinearParams


class SampleRows:
    """Rows B of the batch the denoiser works on: attention inputs fold frames or positions into dim 0 behind B.

    A forward pre-hook of the denoiser; only layers with `token_shared` activations read it.
    """

    rows: int | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.rows = args[0].shape[0]

    def unfold(self, x: Tensor) -> Tensor:
        """[B*k, n, C] -> [B, k*n, C]; packed inputs [1, n, C] stay."""
        if self.rows is None or (x.shape[0] % self.rows and x.shape[0] != 1):
            raise ValueError(f"token_shared needs a multiple of {self.rows} rows, got {x.shape[0]}")
        return x.reshape(min(self.rows, x.shape[0]), -1, x.shape[-1])


@dataclass(frozen=True, eq=False)
class LayerSpec:
    """What a backend gets to build one layer: the original weight [out, in] and bias [out] or None, and how to
    quantize them (on the same device). Raises ValueError when the parameters are of another shape.
    """

    fqn: str
    weight: Tensor
    bias: Tensor | None
    params: LinearParams
    clock: StepClock
    rows: SampleRows

    def __post_init__(self) -> None:
        s, shape = self.params.smoothing, tuple(self.weight.shape)
        quantized = (self.params.weight.scale.shape[1], shape[1] if s is None else s.shape[1])
        if quantized != shape:
            raise ValueError(f"layer {self.fqn} has shape {shape}, its quantization parameters are for {quantized}")


class QuantLinear(nn.Module):
    """Base of the two executable layers: y = fake_quantize(X / s) What^T + bias, What = dequantize(quantize(W * s)).

    The weights of all Kw time ranges are quantized once, here, and kept dequantized as [Kw, out, in] in the dtype of
    `weight`; the clock's step selects one inside the graph, without a host synchronization. Dtype changes such as
    `.half()` reach weight and bias only: buffers named in `exact` stay fp32 (or long) and the quantizer computes in
    fp32.
    """

    exact: tuple[str, ...] = ("weight_range",)
    weight: Tensor
    bias: Tensor | None
    weight_range: Tensor

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        weight, bias, params = layer.weight, layer.bias, layer.params
        self.clock = layer.clock
        self.register_buffer("weight", params.dequantized_weight(weight).to(weight.dtype))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("weight_range", params.weight_range.clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of the weight."""
        weight = self.select_range(self.weight)
        return F.linear(self.fake_quantize_input(x).to(weight.dtype), weight, self.bias)

    def fake_quantize_input(self, x: Tensor) -> Tensor:
        """Quantized and dequantized X / s, fp32."""
        raise NotImplementedError

    def select_range(self, table: Tensor) -> Tensor:
        """Row of a [Kw, ...] table for the current step."""
        if len(table) == 1:
            return table[0]
        return table.index_select(0, self.weight_range.index_select(0, self.clock.index))[0]

    def extra_repr(self) -> str:
        ranges, out_features, in_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}, weight_ranges={ranges}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantLinear":
        kept = {name: self._buffers[name] for name in self.exact}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self


class StaticLinear(QuantLinear):
    """Activation qparams fixed per step: the graph holds no reduction of an activation.

    Smoothing and scale are one division by `divisor` [N, in] = s * D. Codes are kept minus the zero point, so `grid`
    [N, 3] holds the clamp bounds first - z and last - z and the scale D.
    """

    exact = ("weight_range", "divisor", "grid")
    divisor: Tensor
    grid: Tensor

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        params = layer.params
        scale, zero_point = params.step_act()
        first, last = code_range(params.act_bits, params.symmetric_acts)
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


class DynamicLinear(QuantLinear):
    """Activation qparams computed from every input, per token (the ViDiT-Q baseline, spec/quantization.md 2.4)."""

    exact = ("weight_range", "smoothing")
    smoothing: Tensor | None

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        params = layer.params
        self.register_buffer("smoothing", None if params.smoothing is None else params.smoothing.clone())
        self.granularity, self.rows = params.act_granularity, layer.rows
        self.format = {"bits": params.act_bits, "symmetric": params.symmetric_acts}

    def fake_quantize_input(self, x: Tensor) -> Tensor:
        smoothed = x.float() if self.smoothing is None else x.float() / self.select_range(self.smoothing)
        tokens = self.rows.unfold(smoothed) if self.granularity == "token_shared" else smoothed
        qparams = qparams_from_range(*tensor_range(tokens, self.granularity), **self.format)
        return fake_quantize(tokens, qparams, **self.format).reshape(x.shape)


class FusedParts(nn.Module):
    """Stands where a fused linear stood: its projections one by one, each with its own quantization, as a tuple."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.children())
