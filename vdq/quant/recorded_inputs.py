"""What is recorded of a calibration beside the statistics, for methods that judge by the output of layers: some inputs
of every layer, and how much every denoising step counts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.quant import storage

KIND = "vdq.samples"
VERSION = 1  # to be raised when the same calls of the denoiser would give other rows or step errors
_LAYERS, _STEPS = ("inputs", "places"), ("step_error", "step_change")


class LayerInputs(NamedTuple):
    """What was recorded of one layer, and how much every step counts.

    inputs [N, n, C]: n token rows of every step, in half precision. places long [N, n]: the number of each among the
    rows of its call, all dimensions before the channels flattened. The same for all layers are step_error fp32 [N], the
    mean squared error of the final latents when the activations of that step alone are of few bits (vdq.quant.probe),
    and step_change fp32 [N], the relative change of the guided estimate, DVD-Quant's d_t = |F_t - F_{t-1}|_1 /
    |F_{t-1}|_1, 0 at step 0.
    """

    inputs: Tensor
    places: Tensor
    step_error: Tensor
    step_change: Tensor

    @classmethod
    def zeros(cls, num_steps: int, channels: int, device: torch.device | str = "cpu") -> "LayerInputs":
        """One row of zeros a step, for those who want a layer's parameters for their size alone."""
        inputs = torch.zeros(num_steps, 1, channels, dtype=torch.float16, device=device)
        places = torch.zeros(num_steps, 1, dtype=torch.long, device=device)
        return cls(inputs, places, *torch.zeros(2, num_steps, device=device))


@dataclass(frozen=True, eq=False)
class RecordedInputs:
    """What was recorded of all layers: `inputs` and `places` by the fqn of the module that gets them, as in Stats."""

    inputs: dict[str, Tensor]
    places: dict[str, Tensor]
    step_error: Tensor
    step_change: Tensor
    signature: str = ""

    @classmethod
    def of_steps(
        cls,
        inputs: dict[str, dict[int, Tensor]],
        places: dict[str, dict[int, Tensor]],
        error: Tensor,
        change: Tensor,
        signature: str,
    ) -> "RecordedInputs":
        """Made of what vdq.quant.search.InputRecorder has of every step. Raises UserError naming a layer whose inputs
        do not fit into half precision.
        """
        halved = {fqn: _by_step(steps).half() for fqn, steps in inputs.items()}
        for fqn, tensor in halved.items():
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(f"layer {fqn} has inputs beyond 65504, which cannot be recorded in half precision")
        numbers = {fqn: _by_step(steps) for fqn, steps in places.items()}
        return cls(halved, numbers, error.float(), change.float(), signature)

    def layer(self, fqn: str) -> LayerInputs:
        """Raises UserError when nothing was recorded of the layer."""
        if fqn not in self.inputs:
            raise UserError(f"no inputs of layer {fqn} were recorded")
        return LayerInputs(self.inputs[fqn], self.places[fqn], self.step_error, self.step_change)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {f"{name}.{fqn}": t for name in _LAYERS for fqn, t in getattr(self, name).items()}
        tensors |= {name: getattr(self, name) for name in _STEPS}
        storage.save(path, tensors, {"signature": self.signature}, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> "RecordedInputs":
        """Raises UserError when the file holds something else."""
        tensors, header = storage.load(path, kind=KIND)
        steps = [tensors.pop(name) for name in _STEPS]
        if not any(name.startswith("places.") for name in tensors):
            raise UserError(f"{path} has no places of its inputs, an earlier version wrote it")
        layers = ({k.split(".", 1)[1]: t for k, t in tensors.items() if k.startswith(f"{name}.")} for name in _LAYERS)
        return cls(*layers, *steps, header["signature"])


def _by_step(steps: dict[int, Tensor]) -> Tensor:
    return torch.stack([steps[step] for step in sorted(steps)])
