"""An STDiT block whose thirteen projections are integer layers: the same function, its elementwise work fused.

The control flow is written once, over the operations of `BlockOps`, which every integer backend brings itself. Codes
are what a backend's `quantize` returns and its layers take: nothing here looks inside.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vdq.models.stdit import Captions, STDiTBlock, attend
from vdq.quant.parts import TokenGroupActs, TokenSharedActs

Codes = Any


class BlockOps(ABC):
    """What a block is made of. `layers` are modules that the backend built.

    Every layer that computes is called as a module (`layer(codes, ...)`), once for each call of an operation here that
    names it as what computes, so that hooks see it (vdq.quant.call_counter). Channels C come last; rows are tokens, and
    x, the residual stream, has its tokens in (frame, place) order.
    """

    @abstractmethod
    def start(self, x: Tensor) -> Tensor:
        """A copy of x [B, N, C] in the backend's dtype that `add_linear` may overwrite."""

    @abstractmethod
    def quantize(
        self,
        x: Tensor,
        layers: Sequence[nn.Module],
        *,
        swap: tuple[int, int] | None = None,
        position: Tensor | None = None,
    ) -> list[Codes]:
        """Codes of x [..., C] for each of the layers, which share one tensor of codes where their qparams are equal.

        swap=(a, b): rows of x are [B, a, b], those of the codes [B, b, a]. position [1, a, C] is added to x first,
        needs swap.
        """

    @abstractmethod
    def norm_quantize(self, x: Tensor, shift: Tensor, scale: Tensor, layers: Sequence[nn.Module]) -> list[Codes]:
        """Codes of LayerNorm(x) * (1 + scale) + shift: x [B, N, C], shift and scale [B, 1, C]."""

    @abstractmethod
    def linears(self, layers: Sequence[nn.Module], codes: Sequence[Codes]) -> list[Tensor]:
        """The output [rows, out] of each layer for its codes; valid until the next call of `linears`."""

    @abstractmethod
    def gelu_quantize(self, first: nn.Module, codes: Codes, second: nn.Module) -> Codes:
        """Codes for `second` of GELU(first(codes)), tanh approximation. Computes `first` only."""

    @abstractmethod
    def add_linear(self, x: Tensor, layer: nn.Module, codes: Codes, gate: Tensor | None = None) -> Tensor:
        """x + gate * layer(codes), which may be x itself: x [B, N, C], gate [B, 1, C] or None for ones."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, keep: Tensor | None = None) -> Tensor:
        """Attention as in vdq.models.stdit, not quantized: q [G, n, C], k and v [G, m, C] -> [G, n, C]."""
        return attend(q, k, v, num_heads, keep)


class FusedBlock(nn.Module):
    """Stands where the block stood and has its modules by the same names; `block` is quantized, all of it."""

    def __init__(self, block: STDiTBlock, ops: BlockOps) -> None:
        super().__init__()
        self.frames, self.ops = block.frames, ops
        self.scale_shift_table = block.scale_shift_table
        self.attn, self.cross_attn, self.mlp, self.attn_temp = block.attn, block.cross_attn, block.mlp, block.attn_temp

    # Rounding has no gradient.
    @torch.no_grad()
    def forward(self, x: Tensor, captions: Captions, modulation: Tensor, temporal_pos: Tensor | None = None) -> Tensor:
        """x [B, N, C], modulation [B, 6, C], temporal_pos [1, T, C] or None, as STDiTBlock takes them -> [B, N, C] in
        the dtype of x.
        """
        frames, places = self.frames, x.shape[1] // self.frames
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.float().chunk(6, dim=1)
        ops, dtype = self.ops, x.dtype
        x = ops.start(x)

        codes = ops.norm_quantize(x, shift_msa, scale_msa, [*self.attn.qkv.children()])
        attended = self._self_attention(self.attn, codes, places)
        (codes,) = ops.quantize(attended, [self.attn.proj])
        x = ops.add_linear(x, self.attn.proj, codes, gate_msa)

        codes = ops.quantize(x, [*self.attn_temp.qkv.children()], swap=(frames, places), position=temporal_pos)
        attended = self._self_attention(self.attn_temp, codes, frames)
        (codes,) = ops.quantize(attended, [self.attn_temp.proj], swap=(places, frames))
        x = ops.add_linear(x, self.attn_temp.proj, codes, gate_msa)

        cross = self.cross_attn
        codes = ops.quantize(x, [cross.q_linear])
        (q,) = ops.linears([cross.q_linear], codes)
        k, v = (part.float() for part in captions.keys_values(cross.kv_linear))
        attended = ops.attend(q.view(x.shape), k, v, cross.num_heads, captions.keep)
        (codes,) = ops.quantize(attended, [cross.proj])
        x = ops.add_linear(x, cross.proj, codes)

        (codes,) = ops.norm_quantize(x, shift_mlp, scale_mlp, [self.mlp.fc1])
        codes = ops.gelu_quantize(self.mlp.fc1, codes, self.mlp.fc2)
        return ops.add_linear(x, self.mlp.fc2, codes, gate_mlp).to(dtype)

    def _self_attention(self, attention: nn.Module, codes: list[Codes], length: int) -> Tensor:
        """Over groups of `length` consecutive rows -> [groups, length, C]."""
        q, k, v = (y.view(-1, length, y.shape[-1]) for y in self.ops.linears([*attention.qkv.children()], codes))
        return self.ops.attend(q, k, v, attention.num_heads)


def fusible(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` is a block of STDiT all of whose projections are layers of `kind`, static without groups of
    tokens or dynamic with one range a token: what depends on the place of a row in a batch is no matter of one pass.
    """

    def fits(layer: nn.Module) -> bool:
        if not isinstance(layer, kind):
            return False
        return not isinstance(layer.quant.act, TokenSharedActs | TokenGroupActs)

    return isinstance(module, STDiTBlock) and all(map(fits, block_layers(module)))


def block_layers(block: nn.Module) -> list[nn.Module]:
    """What stands at the projections of a block, quantized or not, in the order of their use."""
    attn, temporal, cross, mlp = block.attn, block.attn_temp, block.cross_attn, block.mlp
    parts = [list(attention.qkv.children()) or [attention.qkv] for attention in (attn, temporal)]
    return [
        *parts[0],
        attn.proj,
        *parts[1],
        temporal.proj,
        cross.q_linear,
        cross.kv_linear,
        cross.proj,
        *mlp.children(),
    ]
