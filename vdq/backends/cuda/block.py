"""The operations of a fused STDiT block (vdq.backends.fused_block) in Triton."""

from collections.abc import Sequence

from torch import Tensor

from vdq.backends.cuda.linear import Codes, Int8CudaLinear, quantize
from vdq.backends.fused_block import BlockOps


class CudaOps(BlockOps):
    """Numbers between the layers keep the dtype of the block's input; sums and the norm are fp32 inside the kernels."""

    def start(self, x: Tensor) -> Tensor:
        return x.contiguous()  # nothing here overwrites it

    def quantize(
        self,
        x: Tensor,
        layers: Sequence[Int8CudaLinear],
        *,
        swap: tuple[int, int] | None = None,
        position: Tensor | None = None,
    ) -> list[Codes]:
        added = None if position is None else position[0].contiguous()
        return quantize(x.reshape(-1, x.shape[-1]), layers, swap=swap, position=added)

    def norm_quantize(self, x: Tensor, shift: Tensor, scale: Tensor, layers: Sequence[Int8CudaLinear]) -> list[Codes]:
        return quantize(x.flatten(0, 1), layers, modulation=(shift[:, 0], scale[:, 0]))

    def linears(self, layers: Sequence[Int8CudaLinear], codes: Sequence[Codes]) -> list[Tensor]:
        return [layer(values) for layer, values in zip(layers, codes, strict=True)]

    def gelu_quantize(self, first: Int8CudaLinear, codes: Codes, second: Int8CudaLinear) -> Codes:
        if second.quant.act.static:
            return first(codes, gelu=True, following=second)
        return quantize(first(codes, gelu=True), [second])[0]

    def add_linear(self, x: Tensor, layer: Int8CudaLinear, codes: Codes, gate: Tensor | None = None) -> Tensor:
        gate = None if gate is None else gate[:, 0]
        return layer(codes, residual=x.flatten(0, 1), gate=gate).view(x.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, keep: Tensor | None = None) -> Tensor:
        return super().attend(q, k.to(q.dtype), v.to(q.dtype), num_heads, keep)
