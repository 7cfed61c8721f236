"""The elementwise passes of int8_cpu, in torch: what passes.cpp does in one pass, here block by block.

Codes are unsigned bytes p = q - first code, so zero points are 0..255 whatever the format.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vdq.models.stdit import LAYER_NORM_EPS
from vdq.quant.affine import QParams, qparams_from_range

MIDDLE = 128
# Rows are taken in blocks of so many numbers, whose fp32 intermediates stay in the cache.
BLOCK = 2**17


class Grid(NamedTuple):
    """How one layer's input is quantized at one step.

    divisor: fp32 [in] or None for 1. zero: the zero point 0..255 if static, None if every token has its own. sums:
    whether sums of codes are wanted. scale: the divisor where it is one number, else None.
    """

    divisor: Tensor | None
    zero: int | None
    bits: int
    symmetric: bool
    sums: bool
    scale: float | None = None

    @property
    def top(self) -> int:
        """The last code."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes."""
        return 2 ** (self.bits - 1)

    def same_codes(self, other: Grid) -> bool:
        """Whether both give the same codes."""
        if self[1:4] != other[1:4] or (self.divisor is None) != (other.divisor is None):
            return False
        return self.divisor is None or torch.equal(self.divisor, other.divisor)


class Codes(NamedTuple):
    """Quantized tokens: p uint8 [n, in]; sums of p - zero, fp32 [n], whole numbers, or None; 128 - zero point and scale
    of every token, fp32 [n], if dynamic.
    """

    p: Tensor
    sums: Tensor | None
    shift: Tensor | None
    scale: Tensor | None

    @classmethod
    def empty(cls, rows: int, columns: int, grid: Grid) -> Codes:
        def each(wanted: bool) -> Tensor | None:
            return torch.empty(rows) if wanted else None

        dynamic = grid.zero is None
        return cls(torch.empty(rows, columns, dtype=torch.uint8), each(grid.sums), each(dynamic), each(dynamic))

    def split(self, rows: int) -> list[Codes]:
        parts = [[None] * -(-len(self.p) // rows) if field is None else field.split(rows) for field in self]
        return [Codes(*fields) for fields in zip(*parts, strict=True)]


class Modulation(NamedTuple):
    """LayerNorm without affine, then * (1 + scale) + shift, each fp32 [B, C]."""

    shift: Tensor
    scale: Tensor

    def folded(self, grid: Grid) -> Modulation:
        """The same modulation divided by the grid's divisor; `scale` is then the whole factor."""
        divisor = 1.0 if grid.divisor is None else grid.divisor
        return Modulation((self.shift / divisor).contiguous(), ((1 + self.scale) / divisor).contiguous())


class Source(NamedTuple):
    """What is quantized: x fp32 [B, rows, C] as it is, or after one of these.

    swap=(a, b): rows (i, j) of a * b become rows (j, i); position fp32 [a, C] is added to row (i, j) before.
    norm: LayerNorm and modulation. gelu: tanh approximation.
    """

    x: Tensor
    swap: tuple[int, int] | None = None
    position: Tensor | None = None
    norm: Modulation | None = None
    gelu: bool = False


class TorchPasses:
    """Runs everywhere."""

    name = "torch"

    def quantize(self, source: Source, grids: list[Grid], out: list[Codes] | None = None) -> list[Codes]:
        """Codes [B * rows, C] of the source for each grid, into `out` if given."""
        x = source.x
        batch, rows, channels = x.shape
        out = out or [Codes.empty(batch * rows, channels, grid) for grid in grids]
        if source.swap:
            x = x.unflatten(1, source.swap)
            x = x if source.position is None else x + source.position[:, None]
            x = x.transpose(1, 2).reshape(batch, rows, channels)
        for row, one in enumerate(x):  # modulations differ
            folded = [source.norm and Modulation(*(v[row] for v in source.norm.folded(grid))) for grid in grids]
            pieces = [codes.split(rows)[row] for codes in out] if rows else []
            self._quantize_rows(one, source, grids, folded, pieces)
        return out

    def _quantize_rows(
        self, x: Tensor, source: Source, grids: list[Grid], folded: list[Modulation | None], out: list[Codes]
    ) -> None:
        step = max(1, BLOCK // max(1, x.shape[1]))
        for number, block in enumerate(x.split(step) if len(x) else ()):
            if source.gelu:
                block = F.gelu(block, approximate="tanh")
            if source.norm:
                block = F.layer_norm(block, block.shape[-1:], eps=LAYER_NORM_EPS)
            for grid, modulation, codes in zip(grids, folded, out, strict=True):
                if modulation:
                    values = torch.addcmul(modulation.shift, block, modulation.scale)
                else:
                    values = block if grid.divisor is None else block / grid.divisor
                qparams = None
                if grid.zero is None:
                    qparams = token_qparams(values.amin(1, keepdim=True), values.amax(1, keepdim=True), grid)
                write_codes(values, grid, codes.split(step)[number], qparams)

    def finish(
        self, y: Tensor, codes: Codes, w_sums: Tensor, offset: Tensor | None, bias: Tensor, into: Tensor | None
    ) -> Tensor:
        """scale * (y + shift * w_sums + sums * offset) + bias of dynamic codes, in place of y [n, out], or added to
        `into` in place; w_sums, offset, bias [out].
        """
        y.addr_(codes.shift, w_sums)
        if offset is not None:
            y.addr_(codes.sums, offset)
        if into is None:
            return torch.addcmul(bias, y, codes.scale[:, None], out=y)
        return into.addcmul_(y, codes.scale[:, None]).add_(bias)


def token_qparams(low: Tensor, high: Tensor, grid: Grid) -> QParams:
    """Step size and zero point 0..255 of tokens with these extreme values."""
    scale, zero_point = qparams_from_range(low, high, bits=grid.bits, symmetric=grid.symmetric)
    return QParams(scale, zero_point + grid.middle if grid.symmetric else zero_point)


def write_codes(values: Tensor, grid: Grid, out: Codes, qparams: QParams | None = None) -> None:
    """Codes of values [n, C] that `grid.divisor` has divided; `qparams` [n, 1] are those of the tokens if dynamic."""
    if qparams is None:
        zero, steps = grid.zero, values.round()
    else:
        zero, steps = qparams.zero_point, (values / qparams.scale).round_()
        out.scale.copy_(qparams.scale.squeeze(1))
        out.shift.copy_((MIDDLE - zero).squeeze(1))
    # torch converts floats to signed bytes five times faster than to unsigned ones.
    signed = (steps + (zero - MIDDLE)).clamp_(-MIDDLE, grid.top - MIDDLE)
    out.p.view(torch.int8).copy_(signed)
    out.p.bitwise_xor_(MIDDLE)
    if out.sums is not None:
        zeros = zero if qparams is None else zero.squeeze(1)
        out.sums.copy_(out.p.sum(1, dtype=torch.int32) - out.p.shape[1] * zeros)
