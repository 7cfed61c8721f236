"""The one owner of time: a shared counter that samplers set and layers read."""

import torch
from torch import Tensor, nn


class StepClock(nn.Module):
    """Current denoising step as `index`, a 0-d long buffer that follows the model's device and is not saved with it.

    Layers hold the clock as a sub-module and read `index` on their device, without a host synchronization. `step` is
    the same number for decisions of the host, which are not part of a graph.
    """

    index: Tensor
    step: int

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1")
        self.num_steps, self.step = num_steps, 0
        self.register_buffer("index", torch.zeros((), dtype=torch.long), persistent=False)

    def set(self, step: int) -> None:
        """Move to `step` in place. Raises ValueError outside 0..num_steps-1."""
        if not 0 <= step < self.num_steps:
            raise ValueError(f"step={step} must be in 0..{self.num_steps - 1}")
        self.index.fill_(step)
        self.step = step

    def extra_repr(self) -> str:
        return f"num_steps={self.num_steps}"
