"""QVD (arXiv 2407.11585): SCRI on activations, HTDQ on temporal features.

Confirmed [C]: both ideas, by the abstract. From a port [C for the port]: the channel's centre as shift, absorbed by the
bias; the thresholded factor, off by default; symmetric weights per output channel and symmetric activations per tensor,
both static. Inferred [I]: all formulas that choose, aggregation over all steps, min-max ranges in place of the port's
Lp search, for which statistics have no data, one range for all frames where the port has one a frame, and which
features of STDiT are temporal, with the 8 bits that the port gives its first and last layer. QVD was made for U-Nets
with motion modules; no result of it on a DiT is known. Tags are those of vdq.methods.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vdq.errors import UserError
from vdq.methods.base import RANGE, Method, Table, check_weight
from vdq.methods.qvd.scri import SHIFTS, best_factors, channel_ranges, channel_shift
from vdq.methods.qvd.tables import coverage_table, temporal_table, timestep_table
from vdq.methods.qvd.temporal import choose
from vdq.models.family import family_of
from vdq.quant.affine import check_bits, qparams_from_range
from vdq.quant.convert import affine_weights
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import projections
from vdq.quant.parts import CodebookActs, Correction, Shift, Smoothing, StaticActs
from vdq.quant.state import QuantState
from vdq.quant.stats import LayerStats, Stats
from vdq.quant.time_ranges import TimeRanges
from vdq.quant.transform import shift_correction

ORIGINAL, QUANTIZED = ABSORB = ("original", "quantized")


class QvdMethod(Method):
    """Static activations per tensor, weights symmetric per output channel.

    weight_bits, act_bits: 2..16. shift: "mid" or "mean" (vdq.methods.qvd.scri.channel_shift), None for no shift.
    absorb: the bias gets the shift times the "original" weight, so that the weight's error multiplies X - shift, or
    times the "quantized" one, so that it multiplies X, which is smaller where a channel's values lie at one end of its
    range (after GELU) and matters at 4 bits [I]. scale: factors of the channels above the threshold with the smallest
    expected error (best_factors), one set for all steps; they also take the room that other prompts need beyond the
    calibrated range. num_time_ranges: of shift and activation range, one of 1..N, or "per_step";
    weights stay one set. symmetric_acts: of activations. temporal_bits: of inputs and weights of temporal linears,
    whose error reaches all tokens of all blocks alike, so that they do not follow the other bits down [I]; None leaves
    these layers in full precision. Raises UserError for a value outside these.
    """

    def __init__(
        self,
        *,
        weight_bits: int = 8,
        act_bits: int = 8,
        shift: str | None = "mid",
        absorb: str = QUANTIZED,
        scale: bool = False,
        num_time_ranges: int | str = 1,
        symmetric_acts: bool = True,
        temporal_bits: int | None = 8,
    ) -> None:
        self.weight_bits = check_bits(weight_bits, "weight_bits")
        self.act_bits = check_bits(act_bits, "act_bits")
        self.temporal_bits = None if temporal_bits is None else check_bits(temporal_bits, "temporal_bits")
        if shift not in (None, *SHIFTS):
            raise UserError(f"shift={shift} must be null or one of {', '.join(SHIFTS)}")
        if absorb not in ABSORB:
            raise UserError(f"absorb={absorb} must be one of {', '.join(ABSORB)}")
        self.absorb = absorb
        self.shift, self.scale, self.symmetric_acts = shift, scale, symmetric_acts
        self.num_time_ranges = num_time_ranges

    def needs(self, fqn: str) -> frozenset[str]:
        return frozenset({RANGE})

    def without_effect(self, num_steps: int) -> dict[str, str]:
        return {"absorb": "shift=null moves nothing"} if self.shift is None else {}

    def check(self, num_steps: int) -> None:
        TimeRanges(num_steps, self.num_time_ranges)

    def parts(self) -> frozenset[str]:
        optional = {
            "shift": self.shift is not None,
            "correction": self.shift is not None,
            "smoothing": self.scale,
            "codebook": self.temporal_bits is not None,
        }
        return frozenset({"affine", "static"} | {kind for kind, made in optional.items() if made})

    def layer(self, weight: Tensor, stats: LayerStats | None, num_steps: int) -> LayerQuant:
        ranges = TimeRanges(num_steps, self.num_time_ranges)
        steps = ranges.index.to(weight.device)
        lo, hi = channel_ranges(stats.min, stats.max, ranges)
        transforms = []
        if self.shift is not None:
            shift = channel_shift(stats.min, stats.max, ranges, self.shift)
            lo, hi = lo - shift, hi - shift
            transforms.append(Shift(values=shift, steps=steps))
        no_sets = torch.zeros(num_steps, dtype=torch.long, device=weight.device)
        if self.scale:
            form = {"weight_bits": self.weight_bits, "act_bits": self.act_bits, "symmetric_acts": self.symmetric_acts}
            factors = best_factors(weight, lo, hi, **form)
            lo, hi = lo / factors, hi / factors
            transforms.append(Smoothing(factors=factors[None], steps=no_sets))
        form = {"bits": self.act_bits, "symmetric": self.symmetric_acts}
        scale, zero_point = qparams_from_range(lo.amin(-1), hi.amax(-1), **form)
        act = StaticActs(scale=scale, zero_point=zero_point, steps=steps, **form)
        weights = affine_weights(weight, no_sets, bits=self.weight_bits, symmetric=True, inputs=transforms)
        quant = LayerQuant(inputs=tuple(transforms), weight=weights, act=act)
        if self.shift is None:
            return quant
        correction = Correction(values=self._correction(weight, quant, shift), steps=steps)
        return replace(quant, branches=(correction,))

    def _correction(self, weight: Tensor, quant: LayerQuant, shift: Tensor) -> Tensor:
        """What the shift takes from the output, [K, out]."""
        if self.absorb == ORIGINAL:
            return shift_correction(weight, shift)
        return shift_correction(quant.restored_weight(quant.dequantized_weight(weight, 0), 0), shift)

    def temporal_layers(self, denoiser: nn.Module, timesteps: Tensor | None) -> dict[str, LayerQuant]:
        """HTDQ of every linear of temporal features; raises UserError where model or caller do not tell them."""
        if self.temporal_bits is None:
            return {}
        by_fqn, layers = {p.fqn: p for p in projections(denoiser)}, {}
        for fqn, features in _features(denoiser, timesteps).items():
            check_weight(by_fqn[fqn])
            levels, edges = choose(features, self.temporal_bits)[0].candidate.codebook
            weight, bits = by_fqn[fqn].weight.detach().float(), self.temporal_bits
            steps = torch.zeros(len(timesteps), dtype=torch.long, device=weight.device)
            layers[fqn] = LayerQuant(
                weight=affine_weights(weight, steps, bits=bits, symmetric=True),
                act=CodebookActs(bits=bits, levels=levels, edges=edges),
            )
        return layers

    def tables(
        self, denoiser: nn.Module, stats: Stats | None, state: QuantState, timesteps: Tensor
    ) -> dict[str, Table]:
        """coverage: of every layer before and after SCRI. temporal_features: what the families of HTDQ do at several
        bits. timestep_table: what makes HTDQ needless.
        """
        found = {"coverage": coverage_table(denoiser, stats, state)}
        if self.temporal_bits is not None:
            found["temporal_features"] = temporal_table(_features(denoiser, timesteps), self.temporal_bits)
        family = family_of(denoiser)
        if family is not None and family.timestep_table is not None:
            found["timestep_table"] = timestep_table(family.timestep_table(denoiser, len(timesteps)))
        return found


def _features(denoiser: nn.Module, timesteps: Tensor | None) -> dict[str, Tensor]:
    """Temporal features by the fqn of their linear, each [N, C]."""
    family = family_of(denoiser)
    if timesteps is None or family is None or family.temporal_features is None:
        missing = "the schedule's timesteps" if timesteps is None else "a model whose family has temporal_features"
        raise UserError(f"temporal_bits must be null without {missing}")
    return family.temporal_features(denoiser, timesteps)
