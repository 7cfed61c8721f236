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

    `weights` is a module of vdq.quant.weight_sets, called for the What of the step. Dtype changes such as `.half()`
    reach weights and bias only: the buffers named in `exact` stay fp32 and the quantizer computes in fp32.
    """

    exact: tuple[str, ...]
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

    exact = ("divisor", "grid")
    divisor: Tensor
    grid: Tensor

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__(layer, weights)
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
    """Activation qparams computed from every input, per token (the ViDiT-Q baseline, spec/quantization.md 2.4).

    `smoothing` [N, in] holds s of every step, or is None.
    """

    exact = ("smoothing",)
    smoothing: Tensor | None

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__(layer, weights)
        params = layer.params
        self.register_buffer("smoothing", params.step_smoothing())
        self.granularity, self.rows = params.act_granularity, layer.rows
        self.format = {"bits": params.act_bits, "symmetric": params.symmetric_acts}

    def fake_quantize_input(self, x: Tensor) -> Tensor:
        x = x.float()
        smoothed = x if self.smoothing is None else x / self.smoothing.index_select(0, self.clock.index)[0]
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
