"""What a benchmark measures: the fields of conf/benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vdq.benchmark.peers import PEERS
from vdq.errors import UserError

LINEAR, BLOCK, SAMPLER, DRIVER = "linear", "block", "sampler", "driver"
PARTS = (LINEAR, BLOCK, SAMPLER, DRIVER)
ROWS = 2  # of the block's batch: a caption and the null caption, as guidance has


@dataclass(frozen=True)
class Plan:
    """The plan of a benchmark. parts: "linear" (three linears and fc1-GELU-fc2 of the block), "block" (one block of
    random weights), "sampler" (the configured model), "driver" (a pipeline of diffusers through this project and by
    itself). integer, simulated: methods of conf/quant; with neither, the
    configured method on its backend. peers: keys of vdq.benchmark.peers. rounds: how often everything is timed. videos:
    the sampler part samples so many prompts, a batch a round, instead of `rounds` times the first batch. limit: share
    of the CPUs that other programs may take in a round. call: of a model of diffusers, the size of the video whose
    block is measured. The others are the dimensions of STDiT's block, for two rows of frames * side**2 tokens. Raises
    UserError for a value outside these.
    """

    parts: Sequence[str] = (SAMPLER,)
    integer: Sequence[str] = ()
    simulated: Sequence[str] = ()
    peers: Sequence[str] = ()
    rounds: int = 7
    videos: int | None = None
    limit: float = 0.1
    call: Mapping[str, Any] | None = None
    frames: int = 8
    side: int = 16
    hidden_size: int = 1152
    num_heads: int = 16
    caption_tokens: int = 120
    caption_channels: int = 4096

    def __post_init__(self) -> None:
        _check_names("parts", self.parts, PARTS)
        _check_names("peers", self.peers, PEERS)
        if not self.parts:
            raise UserError(f"benchmark.parts={list(self.parts)} must name at least one of {', '.join(PARTS)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", "int | None") and value is not None and value < 1:
                raise UserError(f"benchmark.{field.name}={value} must be at least 1")
        if self.rounds < 2:
            raise UserError(f"benchmark.rounds={self.rounds} must be at least 2, one has no quartiles")
        if not 0 < self.limit <= 1:
            raise UserError(f"benchmark.limit={self.limit} must be in 0..1, a share of the CPUs")

    def check_methods(self, allowed: Sequence[str]) -> None:
        """Raises UserError for a method that is not one of `allowed`."""
        _check_names("integer", self.integer, allowed)
        _check_names("simulated", self.simulated, allowed)

    @property
    def tokens(self) -> int:
        return ROWS * self.frames * self.side**2


def _check_names(field: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    if isinstance(values, str):
        raise UserError(f"benchmark.{field}={values} must be a list, such as [{values}]")
    for value in values:
        if value not in allowed:
            raise UserError(f"benchmark.{field} has the unknown name {value}; allowed: {', '.join(sorted(allowed))}")
