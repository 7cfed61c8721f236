"""Calibration statistics: per layer input, denoising step and input channel, and per branch of guidance where each has
a call of its own. One set serves every method, alpha and bit-width.

A deviation from upstream: the inputs are those of the unquantized model, and extremes are taken over all prompts.
Upstream measures ranges of a method with its quantized weights and while the activation quantizers of the layers before
run on the parameters of the batch at hand; as shipped, the range of the last batch then replaces those of all others.
Its ranges therefore depend on the method, the batches and their order, ours on the model and the prompts alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from vdq.diffusion.clock import BRANCHES
from vdq.diffusion.timesteps import Timesteps
from vdq.errors import UserError
from vdq.quant import storage
from vdq.quant.recorded_inputs import LayerInputs, RecordedInputs

KIND = "vdq.stats"
VERSION = 1  # to be raised when the same calls of the denoiser would give other statistics
_TENSORS = ("min", "max", "abs_sum", "rows")


@dataclass(frozen=True, eq=False)
class LayerStats:
    """Statistics of one layer input, each [num_steps, C].

    min, max: fp32 extremes. abs_sum: fp64 sum over rows (dim 0) of the row's maximum |X|, with the number of rows in
    `rows` [num_steps] long, so that parts of a batch join exactly. packed: the input holds the tokens of all prompts
    in one row, as the model declares; then `rows` is 1 and abs_sum the maximum over all calls. recorded: some of the
    inputs themselves, where a method wants them (Stats.with_inputs). branches: statistics of the conditional and of the
    unconditional calls alone, where guidance takes two; all other fields are of both together.
    """

    min: Tensor
    max: Tensor
    abs_sum: Tensor
    rows: Tensor
    recorded: LayerInputs | None = None
    packed: bool = False
    branches: tuple["LayerStats", ...] = ()

    @classmethod
    def empty(
        cls, num_steps: int, channels: int, device: torch.device | str = "cpu", *, packed: bool = False
    ) -> "LayerStats":
        shape = (num_steps, channels)
        return cls(
            min=torch.full(shape, torch.inf, dtype=torch.float32, device=device),
            max=torch.full(shape, -torch.inf, dtype=torch.float32, device=device),
            abs_sum=torch.zeros(shape, dtype=torch.float64, device=device),
            rows=torch.zeros(num_steps, dtype=torch.long, device=device),
            packed=packed,
        )

    @classmethod
    def of_branches(cls, branches: Sequence["LayerStats"]) -> "LayerStats":
        """Statistics of the calls of all branches together, which are kept."""
        return replace(reduce(cls.merge, branches), branches=tuple(branches))

    @property
    def calls(self) -> "LayerStats":
        """Statistics of every call by itself, each [2 * num_steps, C], in the order in which StepClock.calls counts
        them. Raises UserError when a branch saw no input at a step, or there are no branches.
        """
        if not self.branches:
            raise UserError(
                "per_branch=true needs statistics of both branches of guidance; these have one call a step, since "
                "nothing was guided or an earlier version wrote them"
            )
        for name, branch in zip(BRANCHES, self.branches, strict=True):
            if len(missing := (branch.rows == 0).nonzero().flatten()):
                raise UserError(f"per_branch=true needs both branches at every step: {int(missing[0])} had no {name}")
        stacked = {name: torch.stack([getattr(b, name) for b in self.branches], 1).flatten(0, 1) for name in _TENSORS}
        return LayerStats(**stacked, packed=self.packed)

    def with_zeros(self) -> "LayerStats":
        """These statistics with recorded inputs that are zero (LayerInputs.zeros)."""
        return replace(self, recorded=LayerInputs.zeros(*self.min.shape, self.min.device))

    @property
    def absmax(self) -> Tensor:
        """The paper's statistic, mean over rows of the row maximum of |X|: fp32 [num_steps, C]."""
        return (self.abs_sum / self.rows[:, None]).float()

    def merge(self, other: "LayerStats") -> "LayerStats":
        """Statistics of both inputs together; packed ones keep the maximum. Raises ValueError when only one is
        packed.
        """
        if self.packed != other.packed:
            raise ValueError("statistics of packed inputs and of others cannot be merged")
        join = torch.maximum if self.packed else torch.add
        return LayerStats(
            min=torch.minimum(self.min, other.min),
            max=torch.maximum(self.max, other.max),
            abs_sum=join(self.abs_sum, other.abs_sum),
            rows=join(self.rows, other.rows),
            packed=self.packed,
            branches=tuple(a.merge(b) for a, b in zip(self.branches, other.branches, strict=True)),
        )

    def beyond(self, window: range) -> "LayerStats":
        """The statistics with every step outside a window of consecutive steps replaced by the nearest one inside."""
        steps = torch.arange(len(self.rows)).clamp(window.start, window.stop - 1)
        branches = tuple(branch.beyond(window) for branch in self.branches)
        return replace(self, branches=branches, **{name: getattr(self, name)[steps] for name in _TENSORS})

    def to(self, device: torch.device | str) -> "LayerStats":
        recorded = self.recorded and LayerInputs(*(tensor.to(device) for tensor in self.recorded))
        branches = tuple(branch.to(device) for branch in self.branches)
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, recorded=recorded, branches=branches, **moved)


@dataclass(frozen=True, eq=False)
class Stats:
    """Statistics of a model. `layers` is keyed by the fqn of the module that receives the input, so that the
    projections of a fused linear share one entry (`blocks.0.attn.qkv`). `signature` names what the numbers depend on;
    `timesteps` are those of the steps, None where an earlier version wrote the file.
    """

    layers: dict[str, LayerStats]
    num_steps: int
    num_prompts: int
    signature: str = ""
    timesteps: Timesteps | None = None

    def merge(self, *others: "Stats") -> "Stats":
        """Statistics of disjoint sets of prompts (devices, micro-batches) together. Raises UserError when they do
        not match.
        """
        return reduce(_merge, others, self)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {f"{fqn}.{name}": t for fqn, layer in self.layers.items() for name, t in _stored(layer).items()}
        header = {"num_steps": self.num_steps, "num_prompts": self.num_prompts, "signature": self.signature}
        header["timesteps"] = self.timesteps
        header["packed"] = sorted(fqn for fqn, layer in self.layers.items() if layer.packed)
        storage.save(path, tensors, header, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> "Stats":
        """Raises UserError when the file holds something else."""
        tensors, header = storage.load(path, kind=KIND)
        fqns = sorted(name.removesuffix(".min") for name in tensors if name.endswith(".min"))
        if "packed" not in header:
            raise UserError(f"{path} does not say which inputs are packed, an earlier version wrote it")
        packed, timesteps = set(header.pop("packed")), header.pop("timesteps", None)
        layers = {fqn: _restored({n: tensors[f"{fqn}.{n}"] for n in _TENSORS}, packed=fqn in packed) for fqn in fqns}
        return cls(layers=layers, **header, timesteps=timesteps and tuple(timesteps))

    def with_inputs(self, recorded: RecordedInputs) -> "Stats":
        """The same statistics with the recorded inputs of every layer. Raises UserError when they are of another
        calibration or lack a layer.
        """
        if recorded.signature != self.signature:
            raise UserError(
                f"recorded inputs have signature={recorded.signature}, must be {self.signature} as the statistics"
            )
        layers = {fqn: replace(layer, recorded=recorded.layer(fqn)) for fqn, layer in self.layers.items()}
        return replace(self, layers=layers)


def _stored(layer: LayerStats) -> dict[str, Tensor]:
    """What a file holds: [num_steps, C], or of both branches [2, num_steps, C]."""
    if not layer.branches:
        return {name: getattr(layer, name) for name in _TENSORS}
    return {name: torch.stack([getattr(branch, name) for branch in layer.branches]) for name in _TENSORS}


def _restored(tensors: dict[str, Tensor], *, packed: bool) -> LayerStats:
    if tensors["rows"].dim() == 1:
        return LayerStats(**tensors, packed=packed)
    branches = (LayerStats(**{name: t[b] for name, t in tensors.items()}, packed=packed) for b in range(len(BRANCHES)))
    return LayerStats.of_branches(list(branches))


def check_complete(layers: Iterable[tuple[str, LayerStats]]) -> None:
    """Raises UserError naming the first layer and step that saw no input."""
    for fqn, layer in layers:
        missing = (layer.rows == 0).nonzero().flatten()
        if len(missing):
            raise UserError(f"layer {fqn} saw no input at step {int(missing[0])}, calibration must run every step")


def _merge(a: Stats, b: Stats) -> Stats:
    facts = [(stats.num_steps, stats.timesteps, stats.signature, stats.layers.keys()) for stats in (a, b)]
    if facts[0] != facts[1]:
        raise UserError("statistics of different models, layers, step counts or signatures cannot be merged")
    layers = {fqn: a.layers[fqn].merge(b.layers[fqn]) for fqn in a.layers}
    return replace(a, layers=layers, num_prompts=a.num_prompts + b.num_prompts)
