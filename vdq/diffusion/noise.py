"""One random stream per prompt, so that a video's noise does not depend on what else is in its batch."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class PromptNoise:
    """Standard normal noise on the CPU for n prompts, each from its own generator.

    `indices` are the prompts' places in the whole prompt list, `shape` is one latent (c, T, H, W), None where only
    `generators` are asked for. The stream of a
    prompt is fixed by (seed, index, purpose) alone; another `purpose` is other noise. The initial noise has a stream of
    its own, so it is the same for every sampler.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, ...] | None, *, purpose: str = "") -> None:
        if not indices:
            raise ValueError("indices is empty, must name at least one prompt")
        self.seed, self.indices, self.purpose = seed, tuple(indices), purpose
        self.shape = None if shape is None else tuple(shape)
        self._steps = self._generators("step")

    def initial(self) -> Tensor:
        """[n, *shape] fp32, the same at every call; starts the streams of `next` anew."""
        self._steps = self._generators("step")
        return self._draw(self._generators("initial"))

    def next(self) -> Tensor:
        """[n, *shape] fp32, the next draw of every prompt's stream."""
        return self._draw(self._steps)

    def generators(self) -> list[torch.Generator]:
        """New ones on the CPU, one a prompt, for pipelines that draw by themselves: the first draw is `initial`."""
        return self._generators("initial")

    def _generators(self, stream: str) -> list[torch.Generator]:
        return [
            torch.Generator().manual_seed(_stable_hash(self.seed, index, self.purpose + stream))
            for index in self.indices
        ]

    def _draw(self, generators: list[torch.Generator]) -> Tensor:
        return torch.stack(
            [torch.randn(self.shape, generator=generator, dtype=torch.float32) for generator in generators]
        )


def _stable_hash(seed: int, index: int, stream: str) -> int:
    """63 bits, equal on every machine and in every process (Python's own hash is not)."""
    digest = hashlib.sha256(f"{seed}/{index}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
