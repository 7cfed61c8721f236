"""Token rows that share an activation scale. The token grid of a resolution is fixed, so a row of what a layer gets of
a video is always of the same frame and latent position, and its own scale costs a static layer nothing but the table.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vdq.errors import UserError
from vdq.models.family import TokenOrder, family_of

TOKEN_GROUPS = ("frame", "position")


class TokenGroups(NamedTuple):
    """The groups of one layer's tokens: `rows` long [R], the group 0..count-1 of each of a video's R rows in the order
    in which the layer gets them.
    """

    rows: Tensor
    count: int

    def of(self, places: Tensor) -> Tensor:
        """Groups of rows by their number among those of one or more videos: long, of the shape of places."""
        return self.rows.to(places.device)[places % len(self.rows)]


def token_groups(denoiser: nn.Module, kind: str) -> dict[str, TokenGroups]:
    """The groups of every projection that gets tokens of videos, by fqn; kind: one group a "frame" or a latent
    "position".

    Text has no groups. Raises UserError for a denoiser whose order of tokens nobody has described.
    """
    family = family_of(denoiser)
    if family is None or family.token_orders is None:
        raise UserError(
            f"token_groups={kind} needs a model with a known order of tokens, {type(denoiser).__name__} has none"
        )
    return {fqn: _groups(order, kind) for fqn, order in family.token_orders(denoiser).items()}


def _groups(order: TokenOrder, kind: str) -> TokenGroups:
    count = order.frames if kind == "frame" else order.positions
    index = torch.arange(count).view((-1, 1) if kind == "frame" else (1, -1)).expand(order.frames, order.positions)
    return TokenGroups((index.T if order.by_position else index).flatten(), count)


def group_sizes(x: Tensor, groups: Tensor, count: int) -> Tensor:
    """Root mean square of each group's values at every step, as if it had one row more, of the mean power of all: a
    group of few rows is near the others, one without any is as large as they are on average.

    x [N, n, C], groups long [N, n] -> fp32 [N, count]; 1 where all of x is zero.
    """
    power = x.square().mean(2)
    mean = power.mean(1, keepdim=True)
    shape = (len(x), count)
    sums = power.new_zeros(shape).scatter_add(1, groups, power)
    rows = power.new_zeros(shape).scatter_add(1, groups, torch.ones_like(power))
    sizes = ((sums + mean) / (rows + 1)).sqrt()
    return torch.where(sizes > 0, sizes, 1.0)
