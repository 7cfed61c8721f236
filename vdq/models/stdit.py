"""STDiT, the spatial-temporal diffusion transformer of Open-Sora 1.0 (opensora/models/stdit at its tag v1.0.0).

State-dict keys and their order equal those of the released checkpoints. Symbols in the comments: B videos, C hidden
size, T frames and S tokens per frame after patching, N = T*S tokens per video, L caption tokens, D caption channels.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdq.models.reuse import Memory, Prepared, anew

LAYER_NORM_EPS = 1e-6
FREQUENCY_CHANNELS = 256
# The rounding of a product may depend on its number of rows. Where that follows the batch, rows are filled up with
# copies: embeddings of the timestep are computed so many rows at a time, packed captions are a multiple of so many.
TIMESTEP_ROWS = 8
CAPTION_ROWS = 64


class Captions(NamedTuple):
    """Projected captions of a batch, without padding, and the way back to one padded row per video.

    tokens: [1, n, C], n the sum of lengths filled up to a multiple of CAPTION_ROWS with copies of the last token (just
    B*L where no caption is padded). index: [B*L] long, row of `tokens` that stands at each padded place (any row where
    padded), or None when no caption is padded. keep: [B, 1, 1, L] bool, True where a caption token stands, or None.
    batch: B. memory: keeps the keys and values of prepared captions from call to call.
    """

    tokens: Tensor
    index: Tensor | None
    keep: Tensor | None
    batch: int
    memory: Callable = anew

    def keys_values(self, kv_linear: nn.Module) -> tuple[Tensor, Tensor]:
        """k and v, each [B, L, C], of the block that has `kv_linear`: [1, n, C] -> [1, n, 2*C]. Padded places hold any
        row.
        """

        def padded() -> tuple[Tensor, Tensor]:
            kv = kv_linear(self.tokens)
            if self.index is not None:
                kv = kv[0].index_select(0, self.index)
            return kv.reshape(self.batch, -1, kv.shape[-1]).chunk(2, dim=-1)

        return self.memory(kv_linear, self.tokens, padded)


class FusedLinear(nn.Linear):
    """One checkpoint tensor with several projections of equal width; forward returns one tensor per name in `parts`."""

    def __init__(self, in_features: int, out_features: int, *, parts: tuple[str, ...], bias: bool = True) -> None:
        if not parts or out_features % len(parts):
            raise ValueError(f"out_features={out_features} must split equally into parts={parts}")
        super().__init__(in_features, out_features, bias)
        self.parts = tuple(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., in_features] -> len(parts) tensors [..., out_features / len(parts)]."""
        return super().forward(x).chunk(len(self.parts), dim=-1)


class SelfAttention(nn.Module):
    """Multi-head attention over the middle axis of x [G, n, C]."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = FusedLinear(hidden_size, 3 * hidden_size, parts=("q", "k", "v"))
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)
        return self.proj(attend(q, k, v, self.num_heads))


class CrossAttention(nn.Module):
    """Attention of x [B, N, C] to the caption of the same video. Only real caption tokens enter `kv_linear`."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, captions: Captions) -> Tensor:
        k, v = captions.keys_values(self.kv_linear)
        return self.proj(attend(self.q_linear(x), k, v, self.num_heads, captions.keep))


class MLP(nn.Module):
    """Linear, GELU (tanh approximation), Linear."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class PatchEmbedder(nn.Module):
    """Non-overlapping patches to tokens. The convolution only holds the weights: applied, it is one matrix product."""

    def __init__(self, in_channels: int, patch_size: tuple[int, int, int], hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, c, T, H, W] -> [B, N, C], tokens in (frame, row, column) order."""
        batch, channels, frames, height, width = x.shape
        pt, ph, pw = self.patch_size
        x = x.reshape(batch, channels, frames // pt, pt, height // ph, ph, width // pw, pw)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, -1, channels * pt * ph * pw)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of the timestep (cosines first) and a two-layer MLP."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCY_CHANNELS, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, timestep: Tensor) -> Tensor:
        """timestep [B], any dtype -> [B, C]. The angles are fp32: bf16 cannot hold integers above 256."""
        half = FREQUENCY_CHANNELS // 2
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        frequencies = exponents.double().exp().float()  # correctly rounded, where fp32 exp depends on the CPU
        angles = timestep.float()[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class CaptionEmbedder(nn.Module):
    """Projection of text-encoder features; owns the null caption `y_embedding` [L, D], a buffer as upstream."""

    def __init__(self, caption_channels: int, hidden_size: int, max_length: int) -> None:
        super().__init__()
        self.register_buffer("y_embedding", torch.randn(max_length, caption_channels) / caption_channels**0.5)
        self.y_proj = MLP(caption_channels, hidden_size, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        """y [B, 1, L, D] -> [B, 1, L, C]."""
        return self.y_proj(y)


class STDiTBlock(nn.Module):
    """Spatial attention, temporal attention, cross attention, MLP.

    The temporal branch has neither norm nor modulation and shares `gate_msa`; the cross branch has no gate.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden_size) / hidden_size**0.5)
        self.attn = SelfAttention(hidden_size, num_heads)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.mlp = MLP(hidden_size, int(hidden_size * mlp_ratio), hidden_size)
        self.attn_temp = SelfAttention(hidden_size, num_heads)

    def forward(self, x: Tensor, captions: Captions, modulation: Tensor, temporal_pos: Tensor | None = None) -> Tensor:
        """x [B, N, C], modulation [B, 6, C] = scale_shift_table + t0, temporal_pos [1, T, C] or None -> [B, N, C]."""
        batch, tokens, channels = x.shape
        grid = (batch, self.frames, tokens // self.frames, channels)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)

        spatial = _modulated_norm(x, shift_msa, scale_msa).view(-1, grid[2], channels)  # [B*T, S, C]
        x = torch.addcmul(x, gate_msa, self.attn(spatial).reshape(x.shape))

        temporal = x.view(grid) if temporal_pos is None else x.view(grid) + temporal_pos[:, :, None]
        temporal = temporal.transpose(1, 2).reshape(-1, self.frames, channels)  # [B*S, T, C]
        temporal = self.attn_temp(temporal).reshape(batch, grid[2], self.frames, channels).transpose(1, 2)
        x = torch.addcmul(x.view(grid), gate_msa[:, None], temporal).reshape(x.shape)

        x = x + self.cross_attn(x, captions)
        return torch.addcmul(x, gate_mlp, self.mlp(_modulated_norm(x, shift_mlp, scale_mlp)))


class FinalLayer(nn.Module):
    """Modulated norm and projection to patches; modulated by the timestep embedding itself, not by t0."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / hidden_size**0.5)
        self.linear = nn.Linear(hidden_size, out_features)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, N, C], t [B, C] -> [B, N, out_features]."""
        shift, scale = (self.scale_shift_table + t[:, None]).chunk(2, dim=1)
        return self.linear(_modulated_norm(x, shift, scale))


class STDiT(nn.Module):
    """Open-Sora 1.0 denoiser; the defaults are STDiT-XL/2 for 16x512x512 (759.6M parameters).

    `input_size` is the latent size (T, H, W). `space_scale` and `time_scale` divide the positions before the sine
    tables. Raises ValueError when the latent size is not a multiple of the patch size or the widths do not split.
    """

    def __init__(
        self,
        *,
        input_size: tuple[int, int, int] = (16, 64, 64),
        in_channels: int = 4,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        caption_channels: int = 4096,
        model_max_length: int = 120,
        space_scale: float = 1.0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if any(size % patch for size, patch in zip(input_size, patch_size, strict=True)):
            raise ValueError(f"input_size={tuple(input_size)} must be a multiple of patch_size={tuple(patch_size)}")
        if hidden_size % 4 or hidden_size % num_heads:
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of 4 and of num_heads={num_heads}")
        self.input_size, self.patch_size = tuple(input_size), tuple(patch_size)
        self.in_channels, self.out_channels = in_channels, 2 * in_channels
        self.hidden_size, self.space_scale, self.time_scale = hidden_size, space_scale, time_scale

        self.x_embedder = PatchEmbedder(in_channels, self.patch_size, hidden_size)
        for name, table in self.position_tables().items():
            self.register_buffer(name, table.to(self.x_embedder.proj.weight.device))
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, model_max_length)
        self.blocks = nn.ModuleList(
            STDiTBlock(hidden_size, num_heads, mlp_ratio, frames=self._grid[0]) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, math.prod(self.patch_size) * self.out_channels)
        self._initialize()

    def forward(
        self, x: Tensor, timestep: Tensor | Prepared, y: Tensor | Prepared, mask: Tensor | None = None
    ) -> Tensor:
        """Noise estimate and variance logits.

        x [B, c, T, H, W]; timestep [B]; y [B, 1, L, D] raw caption features; mask [B', L], non-zero where a token
        counts, its rows tiled m0, m1, .., m0, m1, .. when B = k*B'; None keeps all tokens. What `prepare` and
        `prepare_timestep` return may stand for y with its mask, and for timestep. Returns [B, 2c, T, H, W] fp32
        whatever the weights' dtype. Raises ValueError when x or mask does not fit.
        """
        if tuple(x.shape[1:]) != (self.in_channels, *self.input_size):
            raise ValueError(f"x has shape {tuple(x.shape)}, must be (B, {self.in_channels}, *{self.input_size})")
        dtype = self.x_embedder.proj.weight.dtype
        tokens = self.x_embedder(x.to(dtype))
        tokens = tokens.unflatten(1, (-1, self.pos_embed.shape[1])).add(self.pos_embed[:, None]).flatten(1, 2)
        t, modulations = self.modulations(timestep)
        captions = self._captions(y, mask)
        for number, (block, modulation) in enumerate(zip(self.blocks, modulations, strict=True)):
            tokens = block(tokens, captions, modulation, self.pos_embed_temporal if number == 0 else None)
        return self._unpatchify(self.final_layer(tokens, t)).float()

    @staticmethod
    def packed_lengths(
        x: Tensor, timestep: Tensor | Prepared, y: Tensor | Prepared, mask: Tensor | None = None
    ) -> Tensor:
        """Caption tokens of every row of a call, long [B], in the order in which `cross_attn.kv_linear` gets them."""
        y, mask = y.inputs if isinstance(y, Prepared) else (y, mask)
        if mask is None:
            return torch.full((len(x),), y.shape[2], device=x.device)
        return (mask != 0).sum(1).repeat(len(x) // len(mask))

    @property
    def null_caption(self) -> Tensor:
        """The features [L, D] that stand for no caption."""
        return self.y_embedder.y_embedding

    @property
    def dimensions(self) -> dict[str, Any]:
        """The arguments that build a network of this structure."""
        block, y_embedding = self.blocks[0], self.y_embedder.y_embedding
        return {
            "input_size": list(self.input_size),
            "in_channels": self.in_channels,
            "patch_size": list(self.patch_size),
            "hidden_size": self.hidden_size,
            "depth": len(self.blocks),
            "num_heads": block.attn.num_heads,
            "mlp_ratio": block.mlp.fc1.out_features / self.hidden_size,
            "caption_channels": y_embedding.shape[1],
            "model_max_length": y_embedding.shape[0],
            "space_scale": self.space_scale,
            "time_scale": self.time_scale,
        }

    @staticmethod
    def prepare(y: Tensor, mask: Tensor | None = None) -> Prepared:
        """Stands for y and mask in several calls, without gradient: the first one projects and packs the captions and
        computes every block's keys and values, the others use them, as long as vdq.models.reuse allows.

        A call does the same products on the same tensors as without it, only less often: its result has the same bits.
        """
        return Prepared((y, mask), Memory())

    @staticmethod
    def prepare_timestep(timestep: Tensor) -> Prepared:
        """Prepares timestep [B] likewise: its embedding t [B, C] and every block's modulation [B, 6, C] are kept."""
        return Prepared((timestep,), Memory())

    def modulations(self, timestep: Tensor | Prepared) -> tuple[Tensor, list[Tensor]]:
        """t [B, C], and scale_shift_table + t0 [B, 6, C] of every block."""
        (timestep,), memory = timestep if isinstance(timestep, Prepared) else ((timestep,), anew)
        t = memory(self.t_embedder, timestep, lambda: _by_chunks(self.t_embedder, timestep))

        def tables() -> list[Tensor]:
            t0 = _by_chunks(self.t_block, t).unflatten(1, (6, -1))
            return [block.scale_shift_table + t0 for block in self.blocks]

        return t, memory(self.t_block, t, tables)

    def _captions(self, y: Tensor | Prepared, mask: Tensor | None) -> Captions:
        (y, mask), memory = y if isinstance(y, Prepared) else ((y, mask), anew)
        dtype = self.x_embedder.proj.weight.dtype
        packed = memory(self.y_embedder, y, lambda: pack_captions(self.y_embedder(y.to(dtype)), mask))
        return packed._replace(memory=memory)  # not inside: a memory that holds itself is freed late

    def position_tables(self) -> dict[str, Tensor]:
        """The buffers that depend on the size alone: pos_embed [1, S, C] and pos_embed_temporal [1, T, C], fp32.

        On the CPU also where another default device is set, so that a network built on the meta device gets values.
        """
        frames, rows, columns = self._grid
        with torch.device("cpu"):
            return {
                "pos_embed": _spatial_positions(self.hidden_size, rows, columns, self.space_scale),
                "pos_embed_temporal": _temporal_positions(self.hidden_size, frames, self.time_scale),
            }

    @property
    def _grid(self) -> tuple[int, ...]:
        """Patches along (T, H, W)."""
        return tuple(size // patch for size, patch in zip(self.input_size, self.patch_size, strict=True))

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """[B, N, pt*ph*pw*2c] with the channel fastest -> [B, 2c, T, H, W]."""
        x = tokens.reshape(-1, *self._grid, *self.patch_size, self.out_channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(-1, self.out_channels, *self.input_size)

    def _initialize(self) -> None:
        """Upstream's start: Xavier everywhere, small normals on the embedders, zero on the late branches."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        embedders = (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.t_block[1])
        for linear in (*embedders, self.y_embedder.y_proj.fc1, self.y_embedder.y_proj.fc2):
            nn.init.normal_(linear.weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.attn_temp.proj.weight)
            nn.init.zeros_(block.cross_attn.proj.weight)
        nn.init.zeros_(self.final_layer.linear.weight)


def pack_captions(y: Tensor, mask: Tensor | None) -> Captions:
    """Concatenate the captions of a batch without their padding.

    y [B, 1, L, C]; mask [B', L] with B a multiple of B', or None for no padding. Raises ValueError when they do not
    fit.
    """
    batch, _, length, channels = y.shape
    rows = y.reshape(batch * length, channels)
    if mask is None:
        return Captions(rows[None], None, None, batch)
    if mask.shape[-1] != length or batch % mask.shape[0]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, must be (a divisor of {batch}, {length})")
    keep = (mask != 0).repeat(batch // mask.shape[0], 1)
    if torch.compiler.is_exporting():  # shapes must not depend on values: the padding stays, attention leaves it out
        return pack_captions(y, None)._replace(keep=keep[:, None, None])
    flat = keep.flatten()
    index = (flat.cumsum(0) - 1).clamp(min=0)
    chosen = flat.nonzero().squeeze(1)
    filled = torch.cat([chosen, chosen[-1:].expand(-len(chosen) % CAPTION_ROWS)])
    return Captions(rows.index_select(0, filled)[None], index, keep[:, None, None], batch)


def _by_chunks(module: nn.Module, rows: Tensor) -> Tensor:
    """module(rows) for rows [B, ...], computed TIMESTEP_ROWS at a time, the last ones filled up with copies of the last
    row: no row's result then depends on how many there are.
    """
    if torch.compiler.is_exporting():  # the batch of a graph is fixed
        return module(rows)
    count = len(rows)
    filled = torch.cat([rows, rows[-1:].expand(-count % TIMESTEP_ROWS, *rows.shape[1:])])
    return torch.cat([module(chunk) for chunk in filled.split(TIMESTEP_ROWS)])[:count]


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, keep: Tensor | None = None) -> Tensor:
    """q [G, n, C], k and v [G, m, C], head-major -> [G, n, C]; scores scaled by head_dim**-0.5."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep).transpose(1, 2).flatten(2)


def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine, then x * (1 + scale) + shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS), 1 + scale)


def _sine_table(dim: int, positions: Tensor) -> Tensor:
    """positions [P] float64 -> [P, dim] float64: sines, then cosines of position * 10000**(-2k / dim)."""
    omega = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = torch.outer(positions, omega)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _spatial_positions(dim: int, rows: int, columns: int, scale: float) -> Tensor:
    """[1, rows*columns, dim] fp32: the first half encodes the column, the second the row."""
    column, row = (
        _sine_table(dim // 2, (torch.arange(n, dtype=torch.float32) / scale).double()) for n in (columns, rows)
    )
    table = torch.cat([column.repeat(rows, 1), row.repeat_interleave(columns, dim=0)], dim=1)
    return table.float()[None]


def _temporal_positions(dim: int, frames: int, scale: float) -> Tensor:
    """[1, frames, dim] fp32."""
    return _sine_table(dim, torch.arange(frames, dtype=torch.float64) / scale).float()[None]
