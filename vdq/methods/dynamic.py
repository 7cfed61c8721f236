"""ViDiT-Q's dynamic token-wise quantization, the paper's baseline (spec/quantization.md 2.4, 3.4)."""

from torch import Tensor

from vdq.errors import UserError
from vdq.methods.base import ABSMAX, SmoothedMethod
from vdq.quant.convert import weight_qparams
from vdq.quant.smoothing import MOMENTUM
from vdq.quant.state import LinearParams
from vdq.quant.stats import LayerStats

TOKEN_GRANULARITIES = ("per_token", "token_shared")


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

    @property
    def depends_on_batch(self) -> bool:
        return self.token_granularity == "token_shared"

    def needs(self, fqn: str) -> frozenset[str]:
        return frozenset() if self.alpha is None else frozenset({ABSMAX})

    def parts(self) -> frozenset[str]:
        return self.smoothing_parts() | {"affine", self.token_granularity}

    def layer(self, weight: Tensor, stats: LayerStats | None, num_steps: int) -> LinearParams:
        s, index = self.smoothing(weight, stats, num_steps)
        return LinearParams(
            weight_bits=self.weight_bits,
            act_bits=self.act_bits,
            weight=weight_qparams(weight, s, bits=self.weight_bits),
            weight_range=index,
            smoothing=s,
            act_granularity=self.token_granularity,
        )
