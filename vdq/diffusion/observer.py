"""Parts of a denoiser that follow how sampling goes: samplers tell them, and know nothing else of them."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from vdq.diffusion.guidance import Reusing


class StepObserver(nn.Module):
    """A module of the denoiser that is told the guided estimate of every step."""

    @abstractmethod
    def observe(self, step: int, estimate: Tensor) -> None:
        """Called after the denoiser at each step 0..N-1 of a batch: estimate [n, c, T, H, W], one row a prompt."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """What it did in the last batch, one JSON object a prompt in the order of the batch."""


def step_observers(denoiser: nn.Module | Reusing) -> list[StepObserver]:
    """Those among the modules of a denoiser, each once."""
    net = denoiser.denoiser if isinstance(denoiser, Reusing) else denoiser
    return [module for module in net.modules() if isinstance(module, StepObserver)]
