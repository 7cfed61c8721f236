"""Parts of a denoiser that follow how sampling goes: models pass them every estimate and know nothing else of them."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn


class StepObserver(nn.Module):
    """A module that gets the guided estimate of every step."""

    @abstractmethod
    def observe(self, step: int, estimate: Tensor) -> None:
        """Called after the denoiser at each step 0..N-1 of a batch: estimate [n, c, T, H, W], one row a prompt."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """What it did in the last batch, one JSON object a prompt in the order of the batch."""


def step_observers(denoiser: nn.Module) -> list[StepObserver]:
    """The step observers among the modules of a denoiser, each once."""
    return [module for module in denoiser.modules() if isinstance(module, StepObserver)]
