"""Calibration statistics: per layer input, denoising step and input channel. One set serves every recipe, alpha and
bit-width.

A deviation from upstream: the inputs are those of the unquantized model, and extremes are taken over all prompts.
Upstream measures ranges of a recipe with its quantized weights and while the activation quantizers of the layers before
run on the parameters of the batch at hand; as shipped, the range of the last batch then replaces those of all others.
Its ranges therefore depend on the recipe, the batches and their order, ours on the model and the prompts alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.quant import storage
from vdq.quant.samples import LayerSamples, Samples

KIND = "vdq.stats"
VERSION = 1  # to be raised when the same calls of the denoiser would give other statistics
_TENSORS = ("min", "max", "abs_sum", "rows")


@dataclass(frozen=True, eq=False)
class LayerStats:
    """Statistics of one layer input, each [num_steps, C].

    min, max: fp32 extremes. abs_sum: fp64 sum over rows (dim 0) of the row's maximum |X|, with the number of rows in
    `rows` [num_steps] long, so that parts of a batch join exactly. A packed input has one row: `rows` is 1 and
    abs_sum the maximum. samples: recorded inputs, where a recipe wants them (Stats.with_samples).
    """

    min: Tensor
    max: Tensor
    abs_sum: Tensor
    rows: Tensor
    samples: LayerSamples | None = None

    @classmethod
    def empty(cls, num_steps: int, channels: int, device: torch.device | str = "cpu") -> "LayerStats":
        shape = (num_steps, channels)
        return cls(
            min=torch.full(shape, torch.inf, dtype=torch.float32, device=device),
            max=torch.full(shape, -torch.inf, dtype=torch.float32, device=device),
            abs_sum=torch.zeros(shape, dtype=torch.float64, device=device),
            rows=torch.zeros(num_steps, dtype=torch.long, device=device),
        )

    def with_zeros(self) -> "LayerStats":
        """The same with recorded inputs that are zero (LayerSamples.zeros)."""
        return replace(self, samples=LayerSamples.zeros(*self.min.shape, self.min.device))

    @property
    def absmax(self) -> Tensor:
        """The paper's statistic, mean over rows of the row maximum of |X|: fp32 [num_steps, C] (spec/quantization.md
        3.1).
        """
        return (self.abs_sum / self.rows[:, None]).float()

    def merge(self, other: "LayerStats") -> "LayerStats":
        """Statistics of both inputs together; one-row inputs keep the maximum. Raises UserError when the two kinds
        mix.
        """
        packed = _packed(self.rows)
        if packed != _packed(other.rows):
            raise UserError("statistics of one-row (packed) and of many-row inputs cannot be merged")
        joined = torch.maximum(self.abs_sum, other.abs_sum) if packed else self.abs_sum + other.abs_sum
        rows = torch.maximum(self.rows, other.rows) if packed else self.rows + other.rows
        return LayerStats(torch.minimum(self.min, other.min), torch.maximum(self.max, other.max), joined, rows)

    def to(self, device: torch.device | str) -> "LayerStats":
        samples = self.samples and LayerSamples(*(tensor.to(device) for tensor in self.samples))
        return LayerStats(*(getattr(self, name).to(device) for name in _TENSORS), samples)


@dataclass(frozen=True, eq=False)
class Stats:
    """Statistics of a model. `layers` is keyed by the fqn of the module that receives the input, so that the
    projections of a fused linear share one entry (`blocks.0.attn.qkv`). `signature` names what the numbers depend on.
    """

    layers: dict[str, LayerStats]
    num_steps: int
    num_prompts: int
    signature: str = ""

    def merge(self, *others: "Stats") -> "Stats":
        """Statistics of disjoint sets of prompts (devices, micro-batches) together. Raises UserError when they do
        not match.
        """
        return reduce(_merge, others, self)

    def save(self, path: str | Path) -> None:
        """One safetensors file, written atomically."""
        tensors = {f"{fqn}.{name}": getattr(layer, name) for fqn, layer in self.layers.items() for name in _TENSORS}
        header = {"num_steps": self.num_steps, "num_prompts": self.num_prompts, "signature": self.signature}
        storage.save(path, tensors, header, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> "Stats":
        """Raises UserError when the file holds something else."""
        tensors, header = storage.load(path, kind=KIND)
        fqns = sorted(name.removesuffix(".min") for name in tensors if name.endswith(".min"))
        layers = {fqn: LayerStats(**{name: tensors[f"{fqn}.{name}"] for name in _TENSORS}) for fqn in fqns}
        return cls(layers=layers, **header)

    def with_samples(self, samples: Samples) -> "Stats":
        """The same statistics with the recorded inputs of every layer. Raises UserError when they are of another
        calibration or lack a layer.
        """
        if samples.signature != self.signature:
            raise UserError(f"samples have signature={samples.signature}, must be {self.signature} as the statistics")
        layers = {fqn: replace(layer, samples=samples.layer(fqn)) for fqn, layer in self.layers.items()}
        return replace(self, layers=layers)


def check_complete(layers: Iterable[tuple[str, LayerStats]]) -> None:
    """Raise ValueError naming the first layer and step that saw no input."""
    for fqn, layer in layers:
        missing = (layer.rows == 0).nonzero().flatten()
        if len(missing):
            raise UserError(f"layer {fqn} saw no input at step {int(missing[0])}, calibration must run every step")


def _packed(rows: Tensor) -> bool:
    return int(rows.max()) <= 1


def _merge(a: Stats, b: Stats) -> Stats:
    if (a.num_steps, a.signature) != (b.num_steps, b.signature) or a.layers.keys() != b.layers.keys():
        raise UserError("statistics of different models, layers, step counts or signatures cannot be merged")
    layers = {fqn: a.layers[fqn].merge(b.layers[fqn]) for fqn in a.layers}
    return replace(a, layers=layers, num_prompts=a.num_prompts + b.num_prompts)
