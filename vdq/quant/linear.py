"""Linear layers that execute quantization in floating point: integer codes, dequantized, then an ordinary matrix
product; and what stands around the layers of any backend.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from vdq.diffusion.clock import StepClock
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.bit_switch import BitSwitch
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.parts import Runtime


@dataclass(frozen=True, eq=False)
class LayerSpec:
    """What a backend gets to build one layer: the original weight [out, in] and bias [out] or None, and how to
    quantize them (on the same device, codes on the CPU). Raises ValueError when a tensor of a part is of another shape.
    """

    fqn: str
    weight: Tensor
    bias: Tensor | None
    quant: LayerQuant
    clock: StepClock
    rows: BatchLayout
    switch: BitSwitch | None = None

    def __post_init__(self) -> None:
        try:
            check_shapes(self.quant, *self.weight.shape)
        except ValueError as error:
            raise ValueError(f"layer {self.fqn}: {error}") from error

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.clock, self.rows, self.switch)

    def unfolded(self) -> LayerSpec:
        """The layer without folds (LayerQuant.unfolded)."""
        bias = self.bias
        for output in self.quant.outputs if bias is not None else ():
            bias = output.bias(bias)
        return replace(self, bias=bias, quant=self.quant.unfolded(self.weight))

    def core(self) -> LayerSpec:
        """The layer inside TransformedLinear (LayerQuant.core)."""
        return replace(self, quant=self.quant.core(self.weight))


def check_shapes(quant: LayerQuant, out_features: int, in_features: int) -> None:
    """Raises ValueError naming a tensor that does not fit a layer of these widths."""
    for part in quant.parts:
        tensors = part.tensors()
        for name, shape in part.shapes(out_features, in_features).items():
            if (found := tuple(tensors[name].shape)) != shape:
                raise ValueError(
                    f"{part.kind}.{name} is {list(found)}, must be {list(shape)} for a weight "
                    f"[{out_features}, {in_features}]"
                )


class TransformedLinear(nn.Module):
    """A layer of any backend between the transforms of its input and its branches: core(x') + branch(x') + ...

    `inner` is built from LayerSpec.core.
    """

    def __init__(self, layer: LayerSpec, inner: nn.Module) -> None:
        super().__init__()
        quant, self.clock = layer.quant, layer.clock
        modules = (transform.module(layer.clock) for transform in quant.outside)
        self.transforms = nn.ModuleList(module for module in modules if module is not None)
        self.inner = inner
        self.branches = nn.ModuleList(branch.module(layer.clock) for branch in quant.branches)
        self.variants = quant.variants()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of x."""
        transformed = x.float()
        for transform in self.transforms:
            transformed = transform(transformed)
        y = self.inner(transformed)
        for branch in self.branches:
            y = y + branch(transformed)
        return y.to(x.dtype)

    @property
    def variant(self) -> int:
        """Which function of its input the layer is at the clock's step (LayerQuant.variants)."""
        return self.variants[self.clock.step]


class QuantLinear(nn.Module):
    """y = act(x) What^T + bias, in floating point: `act` quantizes and dequantizes the input behind its smoothing.

    `weights` is a module of vdq.quant.weight_sets, called for the What of the step. Dtype changes reach weights and
    bias only, the quantizer computes in fp32.
    """

    bias: Tensor | None

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__()
        quant, self.clock, self.weights = layer.quant, layer.clock, weights
        self.out_features, self.in_features = layer.weight.shape
        (smoothing,) = quant.inputs or (None,)
        self.act = quant.act.module(layer.runtime, smoothing)
        self.variants = quant.variants()
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of the weights."""
        weight = self.weights()
        return F.linear(self.act(x).to(weight.dtype), weight, self.bias)

    @property
    def variant(self) -> int:
        """Which function of its input the layer is at the clock's step (LayerQuant.variants); what an activation
        quantizer decides while sampling, its module's own `variant` tells.
        """
        return self.variants[self.clock.step]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class FusedParts(nn.Module):
    """Stands where a fused linear stood: its projections one by one, each with its own quantization, as a tuple."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.children())
