"""A small branch in floating point beside the integers: the part of a weight that few directions hold.

x' W'^T = x' (up down)^T + x' R^T, of which only the second product is quantized, weight and input (after SVDQuant, Li
et al. 2025, arXiv 2411.05007, whose branch takes what smoothing moved into the weights).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LowRank(NamedTuple):
    """up [out, r] times down [r, in], half precision."""

    down: Tensor
    up: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """What the branch adds to the output: x [..., in] -> [..., out] in the dtype of x."""
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))

    @property
    def weight(self) -> Tensor:
        """The matrix that the branch stands for, fp32 [out, in]."""
        return self.up.float() @ self.down.float()


def low_rank(weight: Tensor, rank: int) -> LowRank:
    """The branch of `rank` that leaves the smallest rest of the weight [out, in], its largest singular directions.

    Ranks beyond the smaller side of the weight give that side. On the meta device only shapes are made.
    """
    rank = min(rank, *weight.shape)
    if weight.is_meta:
        out_features, in_features = weight.shape
        return LowRank(*(weight.new_empty(shape).half() for shape in ((rank, in_features), (out_features, rank))))
    left, sizes, right = torch.linalg.svd(weight.double(), full_matrices=False)
    roots = sizes[:rank].sqrt()
    # Contiguous, as a saved branch is loaded: a product of other strides may round differently.
    return LowRank((roots[:, None] * right[:rank]).half().contiguous(), (left[:, :rank] * roots).half().contiguous())
