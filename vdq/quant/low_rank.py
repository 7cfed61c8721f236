"""The part of a weight that few directions hold."""

import torch
from torch import Tensor

from vdq.quant.parts.branches import LowRank


def low_rank(weight: Tensor, rank: int) -> LowRank:
    """The branch of `rank` that leaves the smallest rest of the weight [out, in], its largest singular directions.

    Ranks beyond the smaller side of the weight give that side. On the meta device only shapes are made.
    """
    rank = min(rank, *weight.shape)
    if weight.is_meta:
        out_features, in_features = weight.shape
        down, up = (weight.new_empty(shape).half() for shape in ((rank, in_features), (out_features, rank)))
        return LowRank(down=down, up=up)
    left, sizes, right = torch.linalg.svd(weight.double(), full_matrices=False)
    roots = sizes[:rank].sqrt()
    # Contiguous, as a saved branch is loaded: a product of other strides may round differently.
    down, up = roots[:, None] * right[:rank], left[:, :rank] * roots
    return LowRank(down=down.half().contiguous(), up=up.half().contiguous())
