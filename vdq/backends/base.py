"""The contract of an execution backend: which quantized layers it can run, and the module that runs one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import nn

from vdq.backends.set_choice import SetChoice
from vdq.errors import UserError
from vdq.quant.affine import MAX_BITS
from vdq.quant.linear import LayerSpec, TransformedLinear


class Backend(ABC):
    """Builds executable layers from specs. `simulated` is True when codes are dequantized and multiplied in floating
    point, False when the product itself is integer, so that a result can say which it was. `parts`: the kinds of parts
    that run, None for every kind; a layer with any other is refused. `most_bits`: codes of more bits run in no layer.
    """

    name: str
    simulated: bool
    parts: frozenset[str] | None = None
    most_bits = MAX_BITS
    unsigned: tuple[str, ...] = ()  # arguments that say where things are: no number depends on them
    version = 1  # to be raised when the same parameters would give other outputs
    weight_sets: SetChoice | None = None  # where it can choose where weight sets are

    @property
    def option(self) -> str:
        """What a user set to get it, for messages."""
        return f"backend={self.name}"

    @property
    def arithmetic(self) -> str:
        """What runs, in words, for logs and tables."""
        return f"{self.name} ({'simulated' if self.simulated else 'integer'})"

    def unknown_part(self, kinds: Iterable[str]) -> str | None:
        """None, or the sentence that names a part of these kinds which does not run here."""
        if self.parts is None or not (others := sorted(set(kinds) - self.parts)):
            return None
        return (
            f"{self.option} does not run the part {others[0]}; it runs {', '.join(sorted(self.parts))}, and "
            "backend=fake_quant runs every part"
        )

    def check_parts(self, kinds: Iterable[str]) -> None:
        """Raises UserError naming the first part that does not run here; needs no layer (Method.parts)."""
        if (reason := self.unknown_part(kinds)) is not None:
            raise UserError(reason)

    def supports(self, layer: LayerSpec) -> str | None:
        """None, or the reason why this layer, all of whose parts are known here, cannot run."""
        return None

    @abstractmethod
    def build(self, layer: LayerSpec) -> nn.Module:
        """A module x [..., in] -> [..., out] that reads the step from layer.clock; called only for supported layers
        that are quantizers and nothing else, but for smoothing directly before them (LayerQuant.core).

        Its attribute `variant` is a number, another one when the step makes it another function of x
        (LayerQuant.variants): what it returned may be used again at a step of the same variant.
        """

    def transformed(self, layer: LayerSpec) -> nn.Module:
        """The module of a supported layer with other transforms or branches, which happen around `build`."""
        return TransformedLinear(layer, self.build(layer.core()))

    def fuse(self, module: nn.Module) -> nn.Module | None:
        """What replaces a module of the quantized model, layers already built, or None to leave it (and look inside).

        The replacement has the layers among its modules, with their `fqn`, and calls them as modules.
        """
        return None

    def layer(self, layer: LayerSpec) -> nn.Module:
        """The module of a layer, after the check; it has `fqn`. Raises UserError naming the layer and the reason."""
        if (reason := self.unknown_part(layer.quant.features)) is not None:
            raise UserError(f"layer {layer.fqn}: {reason}")
        if (reason := self.supports(layer)) is not None:
            raise UserError(f"backend {self.name} does not support layer {layer.fqn}: {reason}")
        module = self.transformed(layer) if layer.quant.transforms else self.build(layer)
        module.fqn = layer.fqn
        return module
