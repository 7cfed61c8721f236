"""The method that quantizes nothing: the reference of every comparison."""

from collections.abc import Callable

from torch import Tensor, nn

from vdq.methods.base import Method
from vdq.quant.keep import NOTHING, Keep
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.report import layer_reports
from vdq.quant.state import QuantState
from vdq.quant.stats import LayerStats, Stats


class FullPrecisionMethod(Method):
    """The only method that may leave every layer alone; its bit-widths are nominal."""

    weight_bits = 16
    act_bits = 16
    quantizes = False

    def needs(self, fqn: str) -> frozenset[str]:
        return frozenset()

    def check(self, num_steps: int) -> None:
        """Any number of steps fits."""

    def parts(self) -> frozenset[str]:
        return frozenset()

    def layer(self, weight: Tensor, stats: LayerStats | None, num_steps: int) -> LayerQuant:
        raise NotImplementedError("full precision has no quantized layers")

    def convert(
        self,
        denoiser: nn.Module,
        stats: Stats | None,
        *,
        num_steps: int,
        quantizable: Callable[[str], bool],
        timesteps: Tensor | None = None,
        keep: Keep = NOTHING,
    ) -> QuantState:
        return QuantState({}, num_steps, layer_reports(denoiser, {}, stats, reason="full-precision method"))
