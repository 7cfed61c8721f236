"""Which rows of a layer's input belong to which row of the denoiser's batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class PacksCaptions(Protocol):
    """A denoiser that gives the caption tokens of its whole batch to some layers as one row."""

    def packed_lengths(self, *inputs: Any, **named_inputs: Any) -> Tensor:
        """Tokens of every row of the batch, long [B], of a call with these inputs. The packed row may be longer: what
        is behind all of them are copies of the last token.
        """


class BatchLayout:
    """Rows B of the batch that the denoiser works on: inputs of attention fold frames or positions into dim 0 behind
    B, and packed inputs hold the tokens of all rows in [1, n, C].

    A forward pre-hook of the denoiser, registered with keyword arguments; only layers whose activation ranges are
    `token_shared` or `per_video` read it.
    """

    rows: int | None = None
    _lengths: Callable[[], Tensor] | None = None

    def __call__(self, module: nn.Module, inputs: tuple, named_inputs: dict[str, Any] | None = None) -> None:
        named_inputs = named_inputs or {}
        self.rows = len(next(x for x in (*inputs, *named_inputs.values()) if isinstance(x, Tensor)))
        self._lengths = None
        if isinstance(module, PacksCaptions):
            self._lengths = lambda: module.packed_lengths(*inputs, **named_inputs)

    def unfold(self, x: Tensor) -> Tensor:
        """[B*k, n, C] -> [B, k*n, C]; packed inputs [1, n, C] stay."""
        if self.rows is None or (x.shape[0] % self.rows and x.shape[0] != 1):
            raise ValueError(f"ranges over the rows of a batch need a multiple of {self.rows} rows, got {x.shape[0]}")
        return x.reshape(min(self.rows, x.shape[0]), -1, x.shape[-1])

    def absmax(self, x: Tensor) -> Tensor:
        """Maximum of |x| of every row and channel: x as a layer gets it -> [B, C]."""
        tokens = self.unfold(x).abs()
        if len(tokens) == self.rows:
            return tokens.amax(1)
        owners = self._owners(x)[:, None].expand_as(tokens[0])
        return tokens.new_zeros(self.rows, x.shape[-1]).scatter_reduce_(0, owners, tokens[0], "amax")

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """`values` [B, C] of the rows for all that belongs to them, to be broadcast against x."""
        if len(x) == 1 and self.rows > 1:
            return values[self._owners(x)][None]
        return values.repeat_interleave(len(x) // self.rows, 0).view(len(x), *[1] * (x.dim() - 2), -1)

    def _owners(self, packed: Tensor) -> Tensor:
        """Rows that the tokens [1, n, C] of packed captions belong to, long [n]; copies at the end to the last."""
        if self._lengths is None:
            raise ValueError(f"one row for a batch of {self.rows} must be packed captions, which this denoiser has not")
        lengths = self._lengths().to(packed.device)
        copies = packed.shape[1] - int(lengths.sum())
        if copies < 0:
            raise ValueError(f"{packed.shape[1]} packed tokens must be those of the captions, {int(lengths.sum())}")
        lengths = torch.cat([lengths[:-1], lengths[-1:] + copies])
        return torch.arange(self.rows, device=packed.device).repeat_interleave(lengths)
