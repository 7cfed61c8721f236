"""The one owner of time: a shared counter that models set while they sample and layers read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONDITIONAL, UNCONDITIONAL = BRANCHES = ("conditional", "unconditional")


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
        self._calls: StepClock | None = None

    def set(self, step: int, branch: str | None = None) -> None:
        """Move to `step` in place. Raises ValueError outside 0..num_steps-1, for an unknown branch, and for none where
        somebody reads `calls`.
        """
        if branch not in (None, *BRANCHES):
            raise ValueError(f"branch={branch} must be {CONDITIONAL}, {UNCONDITIONAL} or None")
        if not 0 <= step < self.num_steps:
            raise ValueError(f"step={step} must be in 0..{self.num_steps - 1}")
        if self._calls is not None:
            if branch is None:
                raise ValueError("branch=None must be that of the call: layers have parameters for each branch")
            self._calls.set(len(BRANCHES) * step + BRANCHES.index(branch))
        self.index.fill_(step)
        self.step, self.branch = step, branch

    @property
    def calls(self) -> StepClock:
        """The clock of layers with parameters for each branch of guidance. It moves with this one, and its steps are
        the two calls of every step: 2 * step, and 1 more for the unconditional one.
        """
        if self._calls is None:
            self._calls = StepClock(len(BRANCHES) * self.num_steps).to(self.index.device)
        return self._calls

    def extra_repr(self) -> str:
        return f"num_steps={self.num_steps}"
