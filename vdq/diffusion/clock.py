"""The one owner of time: a shared counter that models set while they sample and layers read."""

import torch
from torch import Tensor, nn

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"


class StepClock(nn.Module):
    """Current denoising step as `index`, a 0-d long buffer that follows the model's device and is not saved with it.

    Layers hold the clock as a sub-module and read `index` on their device, without a host synchronization. `step` is
    the same number for decisions of the host, which are not part of a graph. `branch` is CONDITIONAL or UNCONDITIONAL
    where guidance takes two calls of the denoiser, None where one call serves both.
    """

    index: Tensor
    step: int
    branch: str | None

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1")
        self.num_steps, self.step, self.branch = num_steps, 0, None
        self.register_buffer("index", torch.zeros((), dtype=torch.long), persistent=False)

    def set(self, step: int, branch: str | None = None) -> None:
        """Move to `step` in place. Raises ValueError outside 0..num_steps-1 and for an unknown branch."""
        if branch not in (None, CONDITIONAL, UNCONDITIONAL):
            raise ValueError(f"branch={branch} must be {CONDITIONAL}, {UNCONDITIONAL} or None")
        if not 0 <= step < self.num_steps:
            raise ValueError(f"step={step} must be in 0..{self.num_steps - 1}")
        self.index.fill_(step)
        self.step, self.branch = step, branch

    def extra_repr(self) -> str:
        return f"num_steps={self.num_steps}"
