"""What a model keeps of an input that stays the same from call to call."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Memory:
    """Results of layers, the last one of each, to be used again while the layer and its input are the same.

    An input is the same if it is the same tensor; nobody may write into it. A layer is the same as long as its tensors
    keep device and dtype, and the `variant` that layers have whose constants change over time is the same number.
    Nobody may write into its weights either: whoever trains needs a new Memory.
    """

    def __init__(self) -> None:
        self._kept: dict[nn.Module, tuple[Tensor, tuple, Any]] = {}

    def __call__(self, layer: nn.Module, x: Tensor, make: Callable[[], Any]) -> Any:
        """What `make()` returns, which calls `layer` on x and depends on nothing else that changes."""
        function = _function(layer)
        kept = self._kept.get(layer)
        if kept is None or kept[0] is not x or kept[1] != function:
            kept = self._kept[layer] = (x, function, make())
        return kept[2]


def anew(layer: nn.Module, x: Tensor, make: Callable[[], Any]) -> Any:
    """Stands where a Memory can stand and keeps nothing."""
    return make()


class Prepared(NamedTuple):
    """Inputs of a model for several calls, with a memory of what its layers made of them."""

    inputs: tuple[Tensor | None, ...]
    memory: Memory


@runtime_checkable
class PreparesInputs(Protocol):
    """A denoiser of which something may stand for its inputs in several calls, so that it works on them once."""

    def prepare(self, y: Tensor, mask: Tensor | None = None) -> Any:
        """Stands for captions and their mask."""

    def prepare_timestep(self, timestep: Tensor) -> Any:
        """Stands for timesteps [B]."""


def _function(layer: nn.Module) -> tuple:
    tensors = {(tensor.device, tensor.dtype) for tensor in (*layer.parameters(), *layer.buffers())}
    return tensors, [module.variant for module in layer.modules() if hasattr(module, "variant")]
