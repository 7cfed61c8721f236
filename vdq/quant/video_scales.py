"""Activation scales measured in the current tensor for each video and channel: DVD-Quant's ARQ (arXiv 2505.18663).

Second-hand (spec/dvd_quant_and_qvd.md 1.2): s_j = max |X_j| of the current, rotated tensor and X ~ Q(X / s) s, eq. 10,
are [S], and so is that the authors' kernels share a scale among a block of channels. That one video and guidance half
is the tensor is [I]: its result then does not depend on the batch. Q is symmetric, as s has no sign [I].
"""

from torch import Tensor, nn

from vdq.quant.affine import EPS
from vdq.quant.linear import LayerSpec, SmoothedLinear


class VideoScaledLinear(SmoothedLinear):
    """Dynamic, one scale for a row of the denoiser's batch and `act_block` consecutive channels.

    Dequantized only: a scale that varies along the contraction is no factor of an integer sum. The layer's switch says
    how many bits a row has; without one all have the same.
    """

    def __init__(self, layer: LayerSpec, weights: nn.Module) -> None:
        super().__init__(layer, weights)
        self.rows, self.switch = layer.rows, layer.switch
        self.bits, self.block = layer.params.act_bits, layer.params.act_block

    def fake_quantize_input(self, x: Tensor) -> Tensor:
        smoothed = self.smoothed(x)
        absmax = self.rows.absmax(smoothed)  # [rows, C]
        bits = self.bits if self.switch is None else self.switch.bits(len(absmax)).to(x.device)[:, None]
        scale = absmax_scale(block_max(absmax, self.block), bits)
        return fake_quantize_within(smoothed, self.rows.spread(scale, smoothed))

    @property
    def variant(self) -> tuple:
        """Which function of its input the layer is: the bits of the videos are part of it."""
        return self.variants[self.clock.step], self.switch and self.switch.variant


def block_max(absmax: Tensor, block: int) -> Tensor:
    """The largest of every `block` consecutive channels at each of them: [..., C] -> [..., C]."""
    return absmax.unflatten(-1, (-1, block)).amax(-1).repeat_interleave(block, -1)


def absmax_scale(absmax: Tensor, bits: int | Tensor) -> Tensor:
    """D = max|x| / (2^(n-1) - 1) of the symmetric quantizer (spec/quantization.md 2.1); bits broadcast to absmax."""
    return (absmax / (2 ** (bits - 1) - 1)).clamp(min=EPS)


def fake_quantize_within(x: Tensor, scale: Tensor) -> Tensor:
    """round(x / D) D in fp32. Nothing to clamp: D is of a maximum that no |x| exceeds, so codes end at 2^(n-1) - 1."""
    return (x / scale).round_().mul_(scale)
