"""The contract of an execution backend: which quantized layers it can run, and the module that runs one."""

from abc import ABC, abstractmethod

from torch import nn

from vdq.errors import UserError
from vdq.quant.affine import MAX_BITS
from vdq.quant.linear import LayerSpec, TransformedLinear


class Backend(ABC):
    """Builds executable layers from specs. `simulated` is True when codes are dequantized and multiplied in floating
    point, False when the product itself is integer, so that a result can say which it was. `most_bits`: codes of more
    bits run in no layer.
    """

    name: str
    simulated: bool
    most_bits = MAX_BITS
    unsigned: tuple[str, ...] = ()  # arguments that say where things are: no number depends on them
    version = 1  # to be raised when the same parameters would give other outputs

    @property
    def arithmetic(self) -> str:
        """What runs, in words, for logs and tables."""
        return f"{self.name} ({'simulated' if self.simulated else 'integer'})"

    @abstractmethod
    def supports(self, layer: LayerSpec) -> str | None:
        """None, or the reason why this layer cannot run."""

    @abstractmethod
    def build(self, layer: LayerSpec) -> nn.Module:
        """A module x [..., in] -> [..., out] that reads the step from layer.clock; called only for supported layers
        without shift, rotation, low_rank and correction.

        Its attribute `variant` is a number, another one when the step makes it another function of x
        (LinearParams.variants): what it returned may be used again at a step of the same variant.
        """

    def transformed(self, layer: LayerSpec) -> nn.Module:
        """The module of a supported layer with shift, rotation, low_rank or correction, which happen around `build`."""
        return TransformedLinear(layer, self.build(layer.plain()))

    def fuse(self, module: nn.Module) -> nn.Module | None:
        """What replaces a module of the quantized model, layers already built, or None to leave it (and look inside).

        The replacement has the layers among its modules, with their `fqn`, and calls them as modules.
        """
        return None

    def layer(self, layer: LayerSpec) -> nn.Module:
        """The module of a layer, after the check; it has `fqn`. Raises UserError naming the layer and the reason."""
        reason = self.supports(layer)
        if reason is not None:
            raise UserError(f"backend {self.name} does not support layer {layer.fqn}: {reason}")
        module = self.transformed(layer) if layer.params.transforms else self.build(layer)
        module.fqn = layer.fqn
        return module
