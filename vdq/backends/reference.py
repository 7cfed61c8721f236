"""Integer execution written plainly: slow, and what every faster kernel is compared with, sum by sum."""

import torch
from torch import Tensor

from vdq.backends.base import Backend
from vdq.backends.integer import AROUND, BITS, PARTS, HostIntegerLinear, one_grid, unsupported
from vdq.quant.affine import QParams, quantize
from vdq.quant.linear import LayerSpec


class ReferenceBackend(Backend):
    """Codes of 2..8 bits, symmetric or not, static or dynamic, with 32-bit accumulators, on the CPU."""

    name = "reference"
    simulated = False
    parts = PARTS | AROUND | {"step_bits", "token_groups"}
    most_bits = BITS

    def supports(self, layer: LayerSpec) -> str | None:
        return unsupported(layer)

    def build(self, layer: LayerSpec) -> "ReferenceLinear":
        return ReferenceLinear(layer)


class ReferenceLinear(HostIntegerLinear):
    """Holds the codes of every weight range as int32 [out, in]."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        sets = range(self.quant.weight.num_sets)
        self.codes = [self.quant.weight_codes(layer.weight, set_).int() for set_ in sets]

    def product(self, x: Tensor) -> Tensor:
        """The rescale is in fp64, so that a kernel's fp32 rescale is judged against the exact value."""
        codes, act = self.quantize_input(x)
        scale = act.scale.double() * self.quant.weight.qparams(self.range_).scale.double().T  # [1 or n, out]
        y = self.accumulate(codes, act.zero_point.int()).double() * scale
        return (y if self.bias is None else y + self.bias.double()).float()

    def accumulators(self, x: Tensor) -> Tensor:
        codes, act = self.quantize_input(x)
        return self.accumulate(codes, act.zero_point.int())

    def accumulate(self, qx: Tensor, zx: Tensor) -> Tensor:
        """sum_i (qx_i - zx) (qw_i - zw), multiplied out as kernels do: qx [n, in], zx [1 or n, 1] -> int32 [n, out]."""
        qw = self.codes[self.range_]
        zw = self.quant.weight.qparams(self.range_).zero_point.int()  # [out, 1]
        x_sums = qx.sum(1, keepdim=True, dtype=torch.int32)  # [n, 1]
        w_sums = qw.sum(1, dtype=torch.int32)  # [out]
        return qx @ qw.T - zx * w_sums - x_sums * zw.T + self.in_features * zx * zw.T

    def quantize_input(self, x: Tensor) -> tuple[Tensor, QParams]:
        """Codes int32 [n, in] of X / s, and their qparams, [1, 1] if static without groups, else [n, 1]."""
        quantizer = self.quant.act
        s = 1.0 if self.smoothing is None else self.smoothing[self.range_]
        if one_grid(quantizer):
            act = QParams(*(values[self.clock.step].view(1, 1) for values in quantizer.step_qparams()))
            grid, x = QParams(act.scale * s, act.zero_point), x.float().reshape(-1, self.in_features)
        else:
            x = x.float() / s
            grid = act = self.token_qparams(x)
            x = x.reshape(-1, self.in_features)
        return quantize(x, grid, bits=self.act_bits, symmetric=quantizer.symmetric).int(), act

    @property
    def weight_bytes(self) -> int:
        return sum(codes.nbytes for codes in self.codes)
