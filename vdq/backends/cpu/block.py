"""The operations of a fused block on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vdq.backends.cpu.linear import Int8Linear
from vdq.backends.cpu.native import Passes
from vdq.backends.cpu.passes import Codes, Grid, Modulation, Source
from vdq.backends.fused_block import BlockOps

# Tokens between two linears of an MLP are taken in blocks of so many numbers, which stay in the last cache.
BLOCK = 2**21


class Int8BlockOps(BlockOps):
    """One pass over the memory for everything between two products; residuals are added by the products."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes

    def start(self, x: Tensor) -> Tensor:
        return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)

    def quantize(
        self,
        x: Tensor,
        layers: Sequence[Int8Linear],
        *,
        swap: tuple[int, int] | None = None,
        position: Tensor | None = None,
    ) -> list[Codes]:
        rows = swap[0] * swap[1] if swap else -1
        x = x.reshape(-1, rows, x.shape[-1]) if swap else x.reshape(1, -1, x.shape[-1])
        return self._codes(Source(x, swap, None if position is None else position[0].float()), layers)

    def norm_quantize(self, x: Tensor, shift: Tensor, scale: Tensor, layers: Sequence[Int8Linear]) -> list[Codes]:
        return self._codes(Source(x, norm=Modulation(shift[:, 0], scale[:, 0])), layers)

    def linears(self, layers: Sequence[Int8Linear], codes: Sequence[Codes]) -> list[Tensor]:
        return [layer(one, layer.multiply) for layer, one in zip(layers, codes, strict=True)]

    def gelu_quantize(self, first: Int8Linear, codes: Codes, second: Int8Linear) -> Codes:
        grid = second.grid()
        if first.makes_gelu_codes(grid):
            return first(codes, lambda codes: first.gelu_codes(codes, grid))
        out = Codes.empty(len(codes.p), second.in_features, grid)
        rows = max(1, BLOCK // second.in_features)

        def compute(codes: Codes) -> Codes:
            for block, written in zip(codes.split(rows), out.split(rows), strict=True):
                self.passes.quantize(Source(first.multiply(block)[None], gelu=True), [grid], [written])
            return out

        return first(codes, compute)

    def add_linear(self, x: Tensor, layer: Int8Linear, codes: Codes, gate: Tensor | None = None) -> Tensor:
        def compute(codes: Codes) -> Tensor:
            if gate is None or torch.equal(gate, gate[:1].expand_as(gate)):  # all videos stand at one step
                layer.multiply(codes, x.view(-1, x.shape[-1]), None if gate is None else gate[0, 0])
            else:
                for video, factor, part in zip(x, gate, codes.split(x.shape[1]), strict=True):
                    layer.multiply(part, video, factor[0])
            return x

        return layer(codes, compute)

    def _codes(self, source: Source, layers: Sequence[Int8Linear]) -> list[Codes]:
        """Equal codes are made once."""
        grids: list[Grid] = []
        numbers = []
        for layer in layers:
            grid = layer.grid()
            same = next((number for number, other in enumerate(grids) if grid.same_codes(other)), len(grids))
            if same == len(grids):
                grids.append(grid)
            elif grid.sums:
                grids[same] = grids[same]._replace(sums=True)
            numbers.append(same)
        codes = self.passes.quantize(source, grids)
        return [codes[number] for number in numbers]
