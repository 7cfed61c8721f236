"""Video Swin transformer with a gated relative position bias, DOVER's technical branch.

The input is a mosaic of fragments cut from one video, so two neighbouring tokens may come from far apart. Each pair of
tokens therefore mixes two position biases by its distance in fragments, gamma:

    bias = R * gamma + G * (1 - gamma),    gamma = |row of fragment - row'| + |column of fragment - column'|

gamma counts fragments and goes beyond 1; the trained weights expect that. Symbols in the comments: B clips, D x H x W
tokens, C channels, N tokens of a window, M windows, h heads. Channels come last between the layers.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int, int]

PATCH_SIZE = (2, 4, 4)
MLP_RATIO = 4
OTHER_REGION = -100.0  # added to the score of tokens that the roll made neighbours; upstream's value, not -inf


class WindowKind(NamedTuple):
    """Windows whose tokens have the same gamma and the same mask, hence the same bias.

    labels: int8 [3, N], row and column of the token's fragment and its region of the mask, relative to the window's
    first token. rows: long [m], which of the M windows are of this kind.
    """

    labels: Tensor
    rows: Tensor


class PatchEmbed(nn.Module):
    """Linear projection of patches of 2 x 4 x 4 pixels, then a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, channels, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, frames, height, width] -> [B, D, H, W, C]; sizes that are no multiple are filled up with zeros."""
        x = _pad_to_multiple(x.movedim(1, -1), PATCH_SIZE).movedim(-1, 1)
        return self.norm(self.proj(x).movedim(1, -1))


class GatedWindowAttention(nn.Module):
    """Multi-head attention within windows; `gated` gives it the second table G and gamma."""

    def __init__(self, channels: int, window_size: Size, num_heads: int, *, gated: bool) -> None:
        super().__init__()
        self.num_heads, self.gated = num_heads, gated
        distances = (2 * window_size[0] - 1) * (2 * window_size[1] - 1) * (2 * window_size[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(distances, num_heads))
        if gated:
            self.fragment_position_bias_table = nn.Parameter(torch.zeros(distances, num_heads))
        self.register_buffer("relative_position_index", _relative_positions(window_size))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, kinds: Sequence[WindowKind]) -> Tensor:
        """x [B, M, N, C] -> the same shape. One kind of window after the other: its bias is made once and stays in
        the processor's cache, and nothing of size M x N x N is ever held.
        """
        near, slope = self._bias_terms(x.shape[2])
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)  # [3, B, M, h, N, C/h]
        output = torch.empty_like(x)
        for labels, rows in kinds:
            bias = _bias(near, slope, labels.to(x.device), x.dtype)
            rows = rows.to(x.device)
            q, k, v = qkv[:, :, rows].flatten(1, 2)  # [B*m, h, N, C/h] each
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
            output[:, rows] = attended.transpose(1, 2).reshape(len(x), len(rows), *x.shape[2:])
        return self.proj(output)

    def _bias_terms(self, tokens: int) -> tuple[Tensor, Tensor | None]:
        """Bias at gamma = 0 and its growth with gamma, each [h, N, N]; without a gate the growth is None.

        A window smaller than the configured one takes the index's first rows and columns, as upstream does. That is
        the right geometry where only time is shorter, and the one of other pairs where height or width is.
        """
        index = self.relative_position_index[:tokens, :tokens]
        relative = self.relative_position_bias_table[index].permute(2, 0, 1).contiguous()
        if not self.gated:
            return relative, None
        fragment = self.fragment_position_bias_table[index].permute(2, 0, 1).contiguous()
        return fragment, relative - fragment


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Pre-norm attention within windows and MLP; a `shifted` block moves the windows by half of their size."""

    def __init__(self, channels: int, window_size: Size, num_heads: int, *, shifted: bool, gated: bool) -> None:
        super().__init__()
        self.window_size, self.shifted = window_size, shifted
        self.norm1 = nn.LayerNorm(channels)
        self.attn = GatedWindowAttention(channels, window_size, num_heads, gated=gated)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W, C] -> the same shape."""
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        size = x.shape[1:4]
        window = tuple(min(pair) for pair in zip(size, self.window_size, strict=True))
        shift = tuple(w // 2 if self.shifted and n > w else 0 for n, w in zip(size, window, strict=True))
        back = tuple(-s for s in shift)
        x = _pad_to_multiple(x, window)
        padded = tuple(x.shape[1:4])
        windows = _to_windows(x.roll(back, (1, 2, 3)), window)
        windows = self.attn(windows, window_kinds(padded, window, shift, self.attn.gated))
        x = _from_windows(windows, padded, window).roll(shift, (1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]


class PatchMerging(nn.Module):
    """Halves height and width: four neighbours become one token of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W, C] -> [B, D, ceil(H/2), ceil(W/2), 2C]."""
        x = _pad_to_multiple(x, (1, 2, 2))
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Stage(nn.Module):
    """Blocks at one resolution, every other one shifted; all stages but the last end by merging patches."""

    def __init__(
        self, channels: int, depth: int, num_heads: int, window_size: Size, *, gated: bool, merges: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, window_size, num_heads, shifted=number % 2 == 1, gated=gated) for number in range(depth)
        )
        self.downsample = PatchMerging(channels) if merges else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W, C] -> [B, D, H', W', C']."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class SwinTransformer3D(nn.Module):
    """DOVER's technical backbone; the defaults are the published ones. State-dict keys equal upstream's.

    `frag_biases` says of each stage whether its bias is gated. gamma takes as many fragments along height and width as
    `window_size` has tokens there, so a view of other than 7 x 7 fragments needs another window. Raises ValueError when
    the stages' settings differ in number or a stage's channels do not split into its heads.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Sequence[int] = (8, 7, 7),
        frag_biases: Sequence[bool] = (True, True, True, False),
    ) -> None:
        super().__init__()
        stages = len(depths)
        if not len(num_heads) == len(frag_biases) == stages:
            raise ValueError(
                f"num_heads={list(num_heads)} and frag_biases={list(frag_biases)} must have one entry for each of the "
                f"{stages} depths"
            )
        widths = [embed_dim * 2**stage for stage in range(stages)]
        if any(width % heads for width, heads in zip(widths, num_heads, strict=True)):
            raise ValueError(f"num_heads={list(num_heads)} must divide the stages' channels {widths}")
        self.out_channels = widths[-1]
        self.patch_embed = PatchEmbed(embed_dim)
        self.layers = nn.ModuleList(
            Stage(width, depth, heads, tuple(window_size), gated=bool(gated), merges=width != widths[-1])
            for width, depth, heads, gated in zip(widths, depths, num_heads, frag_biases, strict=True)
        )
        self.norm = nn.LayerNorm(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised clips [B, 3, frames, height, width] -> features [B, out_channels, D, H, W]."""
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).movedim(-1, 1)


def _relative_positions(window: Size) -> Tensor:
    """long [N, N]: which row of a bias table belongs to a query (first index) and a key of a full window."""
    axes = [torch.arange(n) for n in window]
    tokens = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # [3, N]
    depth, row, column = (axis[:, None] - axis[None, :] + n - 1 for axis, n in zip(tokens, window, strict=True))
    return (depth * (2 * window[1] - 1) + row) * (2 * window[2] - 1) + column


def _bias(near: Tensor, slope: Tensor | None, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """[h, N, N]: position bias of one kind of window, with its mask."""
    row, column, region = labels
    bias = near
    if slope is not None:
        gamma = (row[:, None] - row).abs() + (column[:, None] - column).abs()  # int8 [N, N]
        bias = torch.addcmul(near, gamma.to(dtype), slope)
    apart = region[:, None] != region
    return torch.where(apart, bias + OTHER_REGION, bias)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve a training as well, whoever asked first
def window_kinds(size: Size, window: Size, shift: Size, gated: bool) -> tuple[WindowKind, ...]:
    """The kinds of windows of a padded grid of `size` tokens.

    Some hundred kilobytes for a 224 x 224 x 32 clip and all layers: gamma itself, N x N for each window, is made from
    the labels where it is needed.
    """
    rows, columns = (
        _fragment_of(size[axis], window[axis], shift[axis]) if gated else torch.zeros(size[axis]) for axis in (1, 2)
    )
    depth, height, width = (_region_of(*axis) for axis in zip(size, window, shift, strict=True))
    region = (depth[:, None, None] * 5 + height[:, None]) * 5 + width  # differences of 0..2 in base 5 are unique
    labels = torch.stack([rows[:, None].expand(size), columns.expand(size), region.expand(size)], dim=-1)
    windows = _to_windows(labels[None], window)[0].mT  # [M, 3, N]
    windows = (windows - windows[:, :, :1]).to(torch.int8)
    kinds, kind_of = torch.unique(windows, dim=0, return_inverse=True)
    return tuple(WindowKind(labels, (kind_of == kind).nonzero().squeeze(1)) for kind, labels in enumerate(kinds))


def _fragment_of(size: int, fragments: int, shift: int) -> Tensor:
    """[size] number of the fragment of each token along one axis, rolled as the tokens are."""
    number = torch.arange(fragments, dtype=torch.float32)[None, None]
    return F.interpolate(number, size=size, mode="nearest")[0, 0].roll(-shift)


def _region_of(size: int, window: int, shift: int) -> Tensor:
    """[size] region of each rolled token along one axis: tokens of two regions are no neighbours in the video."""
    region = torch.zeros(size)
    if shift:
        region[-window:] = 1
        region[-shift:] = 2
    return region


def _pad_to_multiple(x: Tensor, multiple: Sequence[int]) -> Tensor:
    """[B, D, H, W, C] with zeros behind each axis up to a multiple."""
    depth, height, width = (-n % m for n, m in zip(x.shape[1:4], multiple, strict=True))
    return F.pad(x, (0, 0, 0, width, 0, height, 0, depth)) if depth or height or width else x


def _to_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """[B, D, H, W, C] -> [B, M, N, C]."""
    d, h, w = window
    x = x.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, d))  # [B, D/d, d, H/h, h, W/w, w, C]
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)


def _from_windows(x: Tensor, size: Sequence[int], window: Sequence[int]) -> Tensor:
    """[B, M, N, C] -> [B, D, H, W, C], the inverse of `_to_windows`."""
    grid = [n // w for n, w in zip(size, window, strict=True)]
    x = x.unflatten(2, tuple(window)).unflatten(1, tuple(grid))  # [B, D/d, H/h, W/w, d, h, w, C]
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(x), *size, x.shape[-1])
