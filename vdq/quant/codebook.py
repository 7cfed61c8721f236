"""A non-uniform quantizer as a table."""

from typing import NamedTuple

import torch
from torch import Tensor


class Codebook(NamedTuple):
    """A non-uniform quantizer: levels fp32 [L], ascending, and edges fp32 [L - 1] between them."""

    levels: Tensor
    edges: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The level of every value, fp32 of the shape of x; a value on an edge takes the lower level."""
        return self.levels[torch.bucketize(x.float(), self.edges)]
