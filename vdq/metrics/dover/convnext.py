"""ConvNeXt and ConvNeXt V2 with a time axis, backbones of DOVER and DOVER-Mobile.

Image networks whose kernels were given a length in time: 1 or 3 frames, by the block's place in its stage. Channels
come last between the layers, so that a convolution runs on the memory format it is fastest in and norms and linear
layers need no copy. Symbols in the comments: B clips, T x H x W positions, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6
GRN_EPS = 1e-6
EXPANSION = 4
STEM_STRIDE = (2, 4, 4)
STAGE_STRIDE = (1, 2, 2)


class ChannelsLastConv3d(nn.Conv3d):
    """Conv3d of [B, T, H, W, C] -> [B, T', H', W', C']."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class GlobalResponseNorm(nn.Module):
    """Each channel scaled by its norm over time and height, relative to the other channels.

    Upstream kept the image network's axes (1, 2), which with a time axis are time and height: every column of the
    frame is normalised for itself. The trained weights expect that.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, W, C] -> the same shape."""
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)  # [B, 1, 1, W, C]
        scale = norm / (norm.mean(dim=-1, keepdim=True) + GRN_EPS)
        return torch.addcmul(x + self.beta, self.gamma * scale, x)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, MLP, and a scale for each channel."""

    def __init__(self, channels: int, kernel_frames: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.dwconv = _depthwise(channels, kernel_frames)
        self.norm = _norm(channels)
        self.pwconv1 = nn.Linear(channels, EXPANSION * channels)
        self.pwconv2 = nn.Linear(EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, W, C] -> the same shape."""
        hidden = F.gelu(self.pwconv1(self.norm(self.dwconv(x))))
        return torch.addcmul(x, self.gamma, self.pwconv2(hidden))


class ConvNeXtV2Block(nn.Module):
    """Depthwise convolution, norm, and an MLP with a global response norm."""

    def __init__(self, channels: int, kernel_frames: int) -> None:
        super().__init__()
        self.dwconv = _depthwise(channels, kernel_frames)
        self.norm = _norm(channels)
        self.pwconv1 = nn.Linear(channels, EXPANSION * channels)
        self.grn = GlobalResponseNorm(EXPANSION * channels)
        self.pwconv2 = nn.Linear(EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, W, C] -> the same shape."""
        hidden = F.gelu(self.pwconv1(self.norm(self.dwconv(x))))
        return x + self.pwconv2(self.grn(hidden))


class ConvNeXt3D(nn.Module):
    """DOVER's aesthetic backbone; the defaults are the published ones. State-dict keys equal upstream's.

    `inflate_strategy` has the kernel's length in frames, one digit for each block of a stage, repeated. Raises
    ValueError when `depths` and `dims` differ in number or a digit is even or zero.
    """

    block: type[nn.Module] = ConvNeXtBlock

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        inflate_strategy: str = "131",
    ) -> None:
        super().__init__()
        if len(depths) != len(dims):
            raise ValueError(f"dims={list(dims)} must have one entry for each of depths={list(depths)}")
        if not inflate_strategy or set(inflate_strategy) - set("13579"):
            raise ValueError(
                f"inflate_strategy={inflate_strategy!r} must be one or more of the digits 1, 3, 5, 7 and 9"
            )
        self.out_channels = dims[-1]
        stem = nn.Sequential(ChannelsLastConv3d(3, dims[0], STEM_STRIDE, STEM_STRIDE), _norm(dims[0]))
        halvings = (
            nn.Sequential(_norm(before), ChannelsLastConv3d(before, after, STAGE_STRIDE, STAGE_STRIDE))
            for before, after in zip(dims[:-1], dims[1:], strict=True)
        )
        self.downsample_layers = nn.ModuleList([stem, *halvings])
        lengths = [int(digit) for digit in inflate_strategy]
        self.stages = nn.ModuleList(
            nn.Sequential(*(self.block(channels, lengths[number % len(lengths)]) for number in range(depth)))
            for channels, depth in zip(dims, depths, strict=True)
        )
        self.norm = _norm(dims[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Normalised clips [B, 3, frames, height, width] -> features [B, out_channels, T, H, W].

        Frames, rows and columns that do not fill a stride are dropped, such as the last of an odd number of frames.
        """
        x = x.movedim(1, -1)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.norm(x).movedim(-1, 1)


class ConvNeXtV23D(ConvNeXt3D):
    """Backbone of both branches of DOVER-Mobile; the defaults are the published ones.

    `head`, a classifier of `num_classes`, is never used: the published file holds it, and loading is strict.
    """

    block = ConvNeXtV2Block

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (48, 96, 192, 384),
        inflate_strategy: str = "131",
        num_classes: int = 1000,
    ) -> None:
        super().__init__(depths=depths, dims=dims, inflate_strategy=inflate_strategy)
        self.head = nn.Linear(dims[-1], num_classes)


def _depthwise(channels: int, kernel_frames: int) -> ChannelsLastConv3d:
    kernel = (kernel_frames, 7, 7)
    return ChannelsLastConv3d(channels, channels, kernel, padding=(kernel_frames // 2, 3, 3), groups=channels)


def _norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
