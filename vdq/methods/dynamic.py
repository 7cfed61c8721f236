"""ViDiT-Q's dynamic token-wise quantization, the paper's baseline."""

from torch import Tensor

from vdq.errors import UserError
from vdq.methods.base import ABSMAX, SmoothedMethod, smoothed_weights
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.parts import PerTokenActs, TokenSharedActs
from vdq.quant.smoothing import MOMENTUM
from vdq.quant.stats import LayerStats

TOKEN_GRANULARITIES = {part.kind: part for part in (PerTokenActs, TokenSharedActs)}


class DynamicMethod(SmoothedMethod):
    """Per-output-channel weights; activation qparams computed from every input.

    token_granularity: "per_token" takes one range per token and row, so results do not depend on the batch;
    "token_shared" is upstream's range per token index, shared by all rows of the batch. alpha None is ViDiT-Q's W8A8
    and W6A6; with smoothing its presets use 0.625 and one range. The other options are those of StaticMethod. Raises
    UserError for a value outside these.
    """

    static = False

    def __init__(
        self,
        *,
        weight_bits: int = 8,
        act_bits: int = 8,
        token_granularity: str = "per_token",
        num_time_ranges: int | str = 1,
        alpha: float | None = None,
        momentum: float = MOMENTUM,
        ema_order: str = "ascending_t",
    ) -> None:
        super().__init__(
            weight_bits=weight_bits,
            act_bits=act_bits,
            num_time_ranges=num_time_ranges,
            alpha=alpha,
            momentum=momentum,
            ema_order=ema_order,
        )
        if token_granularity not in TOKEN_GRANULARITIES:
            allowed = ", ".join(TOKEN_GRANULARITIES)
            raise UserError(f"token_granularity={token_granularity} must be one of {allowed}")
        self.token_granularity = token_granularity

    def without_effect(self, num_steps: int) -> dict[str, str]:
        own = {"num_time_ranges": "alpha=null smooths nothing"} if self.alpha is None else {}
        return super().without_effect(num_steps) | own

    @property
    def depends_on_batch(self) -> bool:
        return self.token_granularity == "token_shared"

    def needs(self, fqn: str) -> frozenset[str]:
        return frozenset() if self.alpha is None else frozenset({ABSMAX})

    def parts(self) -> frozenset[str]:
        return self.smoothing_parts() | {"affine", self.token_granularity}

    def layer(self, weight: Tensor, stats: LayerStats | None, num_steps: int) -> LayerQuant:
        smoothing = self.smoothing(weight, stats, num_steps)
        inputs, weights = smoothed_weights(weight, smoothing, num_steps, bits=self.weight_bits)
        act = TOKEN_GRANULARITIES[self.token_granularity](bits=self.act_bits)
        return LayerQuant(inputs=inputs, weight=weights, act=act)
