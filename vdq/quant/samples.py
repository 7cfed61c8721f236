"""What is recorded of a calibration beside the statistics, for recipes that judge by the output of layers: some inputs
of every layer, and how much every denoising step counts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vdq.quant import storage

KIND = "vdq.samples"
_STEPS = ("step_error", "step_change")


class LayerSamples(NamedTuple):
    """Of one layer: inputs [N, n, C], n token rows of every step, in half precision. Of all layers: step_error fp32
    [N], the mean squared error of the final latents when the activations of that step alone are of few bits
    (vdq.quant.probe); step_change fp32 [N], the relative change of the guided estimate, DVD-Quant's
    d_t = |F_t - F_{t-1}|_1 / |F_{t-1}|_1, 0 at step 0.
    """

    inputs: Tensor
    step_error: Tensor
    step_change: Tensor

    @classmethod
    def zeros(cls, num_steps: int, channels: int, device: torch.device | str = "cpu") -> "LayerSamples":
        """One row of zeros a step, for those who want a layer's parameters for their size alone."""
        inputs = torch.zeros(num_steps, 1, channels, dtype=torch.float16, device=device)
        return cls(inputs, *torch.zeros(2, num_steps, device=device))


@dataclass(frozen=True, eq=False)
class Samples:
    """Of a model: `inputs` by the fqn of the module that receives them, as vdq.quant.stats.Stats."""

    inputs: dict[str, Tensor]
    step_error: Tensor
    step_change: Tensor
    signature: str = ""

    @classmethod
    def recorded(cls, inputs: dict[str, dict[int, Tensor]], error: Tensor, change: Tensor, signature: str) -> "Samples":
        """From what vdq.quant.search.InputRecorder has of every step. Raises ValueError naming a layer whose inputs do
        not fit into half precision.
        """
        halved = {fqn: torch.stack([steps[step] for step in sorted(steps)]).half() for fqn, steps in inputs.items()}
        for fqn, tensor in halved.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"layer {fqn} has inputs beyond 65504, which cannot be recorded in half precision")
        return cls(halved, error.float(), change.float(), signature)

    def layer(self, fqn: str) -> LayerSamples:
        """Raises ValueError when nothing was recorded of the layer."""
        if fqn not in self.inputs:
            raise ValueError(f"no inputs of layer {fqn} were recorded")
        return LayerSamples(self.inputs[fqn], self.step_error, self.step_change)

    def save(self, path: str | Path) -> None:
        """One safetensors file, written atomically."""
        tensors = {f"inputs.{fqn}": tensor for fqn, tensor in self.inputs.items()}
        tensors |= {name: getattr(self, name) for name in _STEPS}
        storage.save(path, tensors, {"signature": self.signature}, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> "Samples":
        """Raises ValueError when the file holds something else."""
        tensors, header = storage.load(path, kind=KIND)
        steps = [tensors.pop(name) for name in _STEPS]
        return cls({name.removeprefix("inputs."): t for name, t in tensors.items()}, *steps, header["signature"])
