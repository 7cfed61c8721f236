"""The contract of a quantization method: statistics and weights in, the parts of every layer out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import BRANCHES
from vdq.diffusion.timesteps import described, listed, same
from vdq.errors import UserError
from vdq.quant.affine import check_bits
from vdq.quant.convert import affine_weights
from vdq.quant.keep import NOTHING, Keep
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import Projection, projections
from vdq.quant.parts import AffineWeights, Smoothing
from vdq.quant.report import layer_reports
from vdq.quant.smoothing import aggregate_absmax, check_alpha, check_ema, smoothing_factors
from vdq.quant.state import QuantState
from vdq.quant.stats import LayerStats, Stats
from vdq.quant.time_ranges import TimeRanges

RANGE, ABSMAX, INPUTS = "range", "absmax", "inputs"


class Table(NamedTuple):
    """What a method tells beside the report of layers: rows for a file, and a sentence for the log."""

    rows: list[dict[str, Any]]
    summary: str


class Method(ABC):
    """A way to quantize: it decides the parts of every layer from weights and statistics.

    Its options are checked when it is built, the number of steps by `check`, before any model exists. `quantizes` is
    False for full precision alone, `static` is False where activation ranges are measured at run time.
    """

    weight_bits: int
    act_bits: int
    version = 1  # to be raised by a method when its options would give other parameters
    quantizes = True
    static = True
    per_branch = False  # whether each branch of guidance gets parameters of its own
    # Fields of the configuration that came after results were made, with the value that changes nothing.
    neutral: ClassVar[dict[str, Any]] = {"match": None, "keep": [], "keep_steps": []}
    depends_on_batch = False  # whether prompts that are sampled together change each other's videos

    @abstractmethod
    def needs(self, fqn: str) -> frozenset[str]:
        """What is wanted of a layer's calibration: "range" (minimum, maximum), "absmax", "inputs" (recorded ones,
        vdq.quant.recorded_inputs); empty means data-free.
        """

    @abstractmethod
    def check(self, num_steps: int) -> None:
        """Raises UserError when the method does not fit this number of denoising steps."""

    @abstractmethod
    def parts(self) -> frozenset[str]:
        """Kinds of the parts that layers are made of with these options, as far as that is known before calibration: a
        backend that runs others is refused then.
        """

    @abstractmethod
    def layer(self, weight: Tensor, stats: LayerStats | None, num_steps: int) -> LayerQuant:
        """The parts of one layer: weight [out, in], statistics of its input on its device or None if not needed."""

    def without_effect(self, num_steps: int) -> dict[str, str]:
        """Options that change nothing as the other options are, by name, with the reason; setting one is refused."""
        return {}

    def check_calls(self, calls_a_step: int | None) -> None:
        """Raises UserError when the method does not fit a family with so many calls of the denoiser a step, or with a
        number that is not known.
        """
        if self.per_branch and calls_a_step is None:
            raise UserError(
                "quant.per_branch=true is not possible: which branch of guidance a call of this model is, is not known"
            )
        if self.per_branch and calls_a_step < len(BRANCHES):
            raise UserError(
                "quant.per_branch=true has no effect: this model computes both branches of guidance in one call"
            )

    def layers(
        self, weights: dict[str, Tensor], stats: LayerStats | None, num_steps: int, options: dict[str, dict[str, Any]]
    ) -> dict[str, LayerQuant]:
        """Parameters of the layers of one input, by fqn: `layer` of each, with its options. A method whose layers can
        share work on their input does it here.
        """
        return {fqn: self.layer(w, stats, num_steps, **options.get(fqn, {})) for fqn, w in weights.items()}

    def layer_options(self, denoiser: nn.Module, chosen: set[str]) -> dict[str, dict[str, Any]]:
        """Further arguments of `layer` by fqn, for methods in which layers depend on each other; chosen: the fqns of
        all layers that are quantized.
        """
        return {}

    def temporal_layers(self, denoiser: nn.Module, timesteps: Tensor | None) -> dict[str, LayerQuant]:
        """Parameters of linears of temporal features (VideoModel), by fqn; none unless a method has its own for them.
        timesteps: long [N], those of the schedule.
        """
        return {}

    def tables(
        self, denoiser: nn.Module, stats: Stats | None, state: QuantState, timesteps: Tensor
    ) -> dict[str, Table]:
        """What else the method has to tell of the state that it made, by the name of a file."""
        return {}

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
        """Parameters of every linear projection with `quantizable(fqn)` that is not kept, and of `temporal_layers`, and
        a report row for every layer. Pure: the denoiser is only read. Raises UserError for missing or unfitting
        statistics, a weight that is not finite, what `keep` cannot keep, or when nothing would be quantized.
        """
        self.check(num_steps)
        _check_schedule(stats, timesteps)
        chosen = projections(denoiser, quantizable)
        if not chosen:
            raise UserError(f"{type(self).__name__} would quantize no layer, no linear of the model is quantizable")
        kept, kept_steps = keep.of_layers(p.fqn for p in chosen), keep.of_steps(num_steps)
        chosen = [p for p in chosen if p.fqn not in kept]
        options = self.layer_options(denoiser, {p.fqn for p in chosen})
        layers = {}
        for input_fqn, group in groupby(chosen, key=lambda p: p.input_fqn):
            layers |= self._of_one_input(input_fqn, list(group), stats, num_steps, options)
        layers |= self.temporal_layers(denoiser, timesteps)
        told = {"reason": "not quantizable in this model", "kept": kept, "kept_steps": kept_steps}
        report = layer_reports(denoiser, layers, stats, **told)
        return QuantState(layers, num_steps, report, timesteps=listed(timesteps), kept_steps=kept_steps)

    def _of_one_input(
        self,
        input_fqn: str,
        group: list[Projection],
        stats: Stats | None,
        num_steps: int,
        options: dict[str, dict[str, Any]],
    ) -> dict[str, LayerQuant]:
        for p in group:
            check_weight(p)
        wanted = frozenset().union(*(self.needs(p.fqn) for p in group))
        found = self._stats_of(input_fqn, wanted, stats, num_steps).to(group[0].weight.device) if wanted else None
        return self.layers({p.fqn: p.weight.detach().float() for p in group}, found, num_steps, options)

    def _stats_of(self, fqn: str, wanted: frozenset[str], stats: Stats | None, num_steps: int) -> LayerStats:
        if stats is None or fqn not in stats.layers:
            raise UserError(f"{type(self).__name__} needs calibration statistics of layer {fqn}")
        if stats.num_steps != num_steps:
            raise UserError(f"statistics have num_steps={stats.num_steps}, must be {num_steps} as the sampler")
        found = stats.layers[fqn]
        if INPUTS in wanted and found.recorded is None:
            raise UserError(f"{type(self).__name__} needs recorded inputs of layer {fqn}")
        return found


def _check_schedule(stats: Stats | None, timesteps: Tensor | None) -> None:
    """Raise UserError when the statistics are of other timesteps; each may be unknown."""
    if stats is None or stats.timesteps is None or timesteps is None:
        return
    if not same(stats.timesteps, wanted := listed(timesteps)):
        raise UserError(f"statistics are of {described(stats.timesteps)}, must be of the sampler's {described(wanted)}")


def check_weight(p: Projection) -> None:
    """Raises UserError when a weight is not finite."""
    if not bool(torch.isfinite(p.weight).all()):
        raise UserError(f"layer {p.fqn} has NaN or infinite weights")


class SmoothedMethod(Method):
    """Shared by methods with bit-widths and optional smoothing factors, one set per time range (`alpha` None: off)."""

    def __init__(
        self,
        *,
        weight_bits: int,
        act_bits: int,
        num_time_ranges: int | str,
        alpha: float | None,
        momentum: float,
        ema_order: str,
    ) -> None:
        self.weight_bits = check_bits(weight_bits, "weight_bits")
        self.act_bits = check_bits(act_bits, "act_bits")
        check_ema(momentum, ema_order)
        self.alpha = None if alpha is None else check_alpha(alpha)
        self.num_time_ranges, self.momentum, self.ema_order = num_time_ranges, momentum, ema_order

    def check(self, num_steps: int) -> None:
        TimeRanges(num_steps, self.num_time_ranges)

    def smoothing_parts(self) -> frozenset[str]:
        """What `parts` has of `smoothing`."""
        return frozenset() if self.alpha is None else frozenset({"smoothing"})

    def without_effect(self, num_steps: int) -> dict[str, str]:
        if self.alpha is None:
            return dict.fromkeys(("momentum", "ema_order"), "alpha=null smooths nothing")
        if TimeRanges(num_steps, self.num_time_ranges).num_ranges == num_steps:
            return dict.fromkeys(("momentum", "ema_order"), "every range has one step, nothing is averaged")
        return {}

    def smoothing(self, weight: Tensor, stats: LayerStats | None, num_steps: int) -> Smoothing | None:
        """Factors of the num_time_ranges time ranges (paper Eq. 2), or None."""
        if self.alpha is None:
            return None
        ranges = TimeRanges(num_steps, self.num_time_ranges)
        act_absmax = aggregate_absmax(stats.absmax, ranges, momentum=self.momentum, order=self.ema_order)
        factors = smoothing_factors(act_absmax, weight.abs().amax(0), alpha=self.alpha)
        return Smoothing(factors=factors, steps=ranges.index.to(weight.device))


def smoothed_weights(
    weight: Tensor, smoothing: Smoothing | None, num_steps: int, **form: int | bool
) -> tuple[tuple[Smoothing, ...], AffineWeights]:
    """The transforms of the input and the min-max grids of the weight that they leave: one set of weights for each set
    of factors; `form` are bits and symmetric.
    """
    if smoothing is None:
        steps = torch.zeros(num_steps, dtype=torch.long, device=weight.device)
        return (), affine_weights(weight, steps, **form)
    return (smoothing,), affine_weights(weight, smoothing.steps, inputs=(smoothing,), **form)
