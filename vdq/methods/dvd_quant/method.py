"""DVD-Quant (arXiv 2505.18663): data-free, 4-bit weights, activations of 4 bits and at some steps of 8.

No code was published and the paper was read second-hand: what is confirmed [C], second-hand [S] and inferred [I] is
told apart by these tags (vdq.methods). The three parts and that nothing is calibrated are [C], from the abstract.
"""

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.methods.base import Method
from vdq.methods.dvd_quant.grid_refinement import NUM_BOUNDS, TOLERANCE, check_refinement, refine_grid
from vdq.quant.affine import check_bits
from vdq.quant.bit_switch import DELTA, check_delta
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.parts import AffineWeights, PerVideoActs, Rotation
from vdq.quant.rotation import fitting_block
from vdq.quant.stats import LayerStats

BLOCK = 128


class DVDQuantMethod(Method):
    """BGR on rotated weights, live scales of rotated activations (ARQ), and bits that follow the output (delta-GBS).

    weight_bits, act_bits, high_bits: 2..16; act_bits is the low width and high_bits the high one, of the steps that
    the switch chooses by `delta` (vdq.quant.bit_switch); with act_bits >= high_bits there is nothing to switch and all
    steps have act_bits, so W4A8 always has 8 [S]. The paper's W4A6 is a mean, ours is a low width of 6. rotation_block:
    channels that are rotated together, a power of two; where it does not divide a layer's width, the largest one that
    does: 128 serves 1152 and 4608 [I]. scale_block: channels that share a live scale, in the same way: 1, the default,
    is the paper's formula [S]; a K-block such as 128 is what its kernels and all its reported numbers are said to have
    [S], which is coarser. num_bounds, tolerance: of the weight grids
    (vdq.methods.dvd_quant.grid_refinement). Which layers stay in full precision is not known; here those that the
    model leaves out for every method [I]. Raises UserError for a value outside these.
    """

    static = False

    def __init__(
        self,
        *,
        weight_bits: int = 4,
        act_bits: int = 4,
        high_bits: int = 8,
        delta: float = DELTA,
        rotation_block: int = BLOCK,
        scale_block: int = 1,
        num_bounds: int = NUM_BOUNDS,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.weight_bits = check_bits(weight_bits, "weight_bits")
        self.act_bits = check_bits(act_bits, "act_bits")
        self.high_bits, self.delta = check_bits(high_bits, "high_bits"), check_delta(delta)
        self.rotation_block = _check_power(rotation_block, "rotation_block")
        self.scale_block = _check_power(scale_block, "scale_block")
        check_refinement(num_bounds, tolerance)
        self.num_bounds, self.tolerance = num_bounds, tolerance

    def needs(self, fqn: str) -> frozenset[str]:
        return frozenset()

    def without_effect(self, num_steps: int) -> dict[str, str]:
        if self.act_bits < self.high_bits:
            return {}
        return dict.fromkeys(("high_bits", "delta"), f"all steps have act_bits={self.act_bits}, nothing is switched")

    def check(self, num_steps: int) -> None:
        """Any number of steps fits."""

    def parts(self) -> frozenset[str]:
        switched = {"bit_switch"} if self.act_bits < self.high_bits else set()
        return frozenset({"affine", "per_video", "rotation"} | switched)

    def layer(self, weight: Tensor, stats: LayerStats | None, num_steps: int) -> LayerQuant:
        width = weight.shape[1]
        rotation = Rotation(block=fitting_block(width, self.rotation_block))
        grid = refine_grid(
            rotation.weight(weight.float(), 0),
            bits=self.weight_bits,
            num_bounds=self.num_bounds,
            tolerance=self.tolerance,
        )
        switched = self.act_bits < self.high_bits
        return LayerQuant(
            inputs=(rotation,),
            weight=AffineWeights(
                bits=self.weight_bits,
                scale=grid.scale[None],
                zero_point=grid.zero_point[None],
                steps=torch.zeros(num_steps, dtype=torch.long, device=weight.device),
            ),
            act=PerVideoActs(
                bits=self.act_bits,
                block=fitting_block(width, self.scale_block),
                high_bits=self.high_bits if switched else None,
                delta=self.delta if switched else None,
            ),
        )


def _check_power(block: int, name: str) -> int:
    if not isinstance(block, int) or block < 1 or block & (block - 1):
        raise UserError(f"{name}={block} must be a power of two")
    return block
