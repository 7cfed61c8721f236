"""Static substitutes for what neighbouring systems measure at run time, as switches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vdq.errors import UserError
from vdq.methods.base import ABSMAX, INPUTS, RANGE, SmoothedMethod, Table
from vdq.methods.dvd_quant.grid_refinement import refine_grid
from vdq.methods.static_plus.folding import Fold, attention_folds
from vdq.methods.static_plus.gptq import DAMPING, gptq_codes
from vdq.methods.static_plus.inputs import LayerInput, SeenInput
from vdq.methods.static_plus.step_bits import MAX_BITS, frozen_switch, spread_bits
from vdq.methods.static_plus.token_groups import TOKEN_GROUPS, TokenGroups, token_groups
from vdq.quant.affine import QParams, dequantize, fake_quantize, qparams_from_range, quantize, tensor_range
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.low_rank import low_rank
from vdq.quant.parts import (
    AffineWeights,
    Branch,
    Correction,
    FoldedRotation,
    InputTransform,
    RotatedOutput,
    Rotation,
    Shift,
    Smoothing,
    StaticActs,
    TokenGroupActs,
)
from vdq.quant.recorded_inputs import LayerInputs
from vdq.quant.rotation import DENSE, fitting_block
from vdq.quant.smoothing import MOMENTUM
from vdq.quant.state import QuantState
from vdq.quant.stats import LayerStats, Stats
from vdq.quant.transform import in_half, shift_correction
from vdq.quant.weight_codes import pack_codes

SHIFTS = ("mean", "mid")
GRIDS = ("minmax", "refined")
ROUNDINGS = ("nearest", "gptq")
STEP_BITS = ("spread", "switched")
NO_FOLD = Fold()
RATIOS = tuple(1 - i / 10 for i in range(7))  # of the range that is kept: 1 to 0.4


class StaticPlusMethod(SmoothedMethod):
    """One weight set, one activation scale a step; all that is chosen is chosen on calibration inputs.

    weight_bits: 2..16. act_bits: 2..16, where steps differ their mean. alpha, momentum, ema_order: ASQ smoothing, as of
    StaticMethod with one time range. In the order in which they are done, each None, False, 0 or its plain value where
    it is off:

    shift: per channel and step, "mean" of the recorded inputs or "mid" of their range (SCRI), taken back by a bias of
    the step; both tables are used as they are stored, in half precision. rotation_block: block Hadamard of the smoothed
    channels, a power of two; where it does not divide the width of a layer, the largest one that does. fold_rotation:
    inputs of attention's `proj` arrive rotated, head by head and without smoothing, since the weights of the layers
    before are (vdq.methods.static_plus.folding); of an attention that is not quantized as a whole, none is folded.
    low_rank: the rank of a branch in half precision that takes the largest directions of every weight.
    step_bits: "spread" gives each step the bits that its error deserves (vdq.methods.static_plus.step_bits), "switched"
    is delta-GBS frozen. token_groups: the tokens of each "frame" or latent "position" have a scale of their own, that
    of all in proportion to their root mean square; text has one. clamp_acts: the range of every step is narrowed to the
    share of 1 to 0.4 with the least error of the layer's output. weight_grid: "minmax" or "refined" (BGR). rounding:
    "nearest" or "gptq", which minimizes the error of the layer's output over all steps, with its `damping`.
    correct_bias: the mean error of every output that is left is taken off at each step.

    Raises UserError for a value outside these.
    """

    def __init__(
        self,
        *,
        weight_bits: int = 8,
        act_bits: int = 8,
        alpha: float | None = None,
        momentum: float = MOMENTUM,
        ema_order: str = "ascending_t",
        shift: str | None = "mean",
        rotation_block: int = 128,
        fold_rotation: bool = False,
        low_rank: int = 8,
        step_bits: str | None = "spread",
        token_groups: str | None = None,
        clamp_acts: bool = True,
        weight_grid: str = "refined",
        rounding: str = "gptq",
        damping: float = DAMPING,
        correct_bias: bool = False,
    ) -> None:
        super().__init__(
            weight_bits=weight_bits,
            act_bits=act_bits,
            num_time_ranges=1,
            alpha=alpha,
            momentum=momentum,
            ema_order=ema_order,
        )
        self.shift = _one_of("shift", shift, (None, *SHIFTS))
        self.step_bits = _one_of("step_bits", step_bits, (None, *STEP_BITS))
        self.token_groups = _one_of("token_groups", token_groups, (None, *TOKEN_GROUPS))
        self.weight_grid = _one_of("weight_grid", weight_grid, GRIDS)
        self.rounding = _one_of("rounding", rounding, ROUNDINGS)
        if rotation_block and (rotation_block < 0 or rotation_block & (rotation_block - 1)):
            raise UserError(f"rotation_block={rotation_block} must be 0 or a power of two")
        if not isinstance(low_rank, int) or low_rank < 0:
            raise UserError(f"low_rank={low_rank} must be 0 or a positive integer")
        self.rotation_block, self.fold_rotation, self.low_rank = rotation_block, fold_rotation, low_rank
        self.clamp_acts, self.correct_bias = clamp_acts, correct_bias
        if damping <= 0:
            raise UserError(f"damping={damping} must be a number above 0")
        self.damping = damping

    def without_effect(self, num_steps: int) -> dict[str, str]:
        own = {"damping": "only rounding=gptq damps"} if self.rounding != "gptq" else {}
        return super().without_effect(num_steps) | own

    def needs(self, fqn: str) -> frozenset[str]:
        return frozenset({RANGE, ABSMAX, INPUTS})

    def parts(self) -> frozenset[str]:
        optional = {
            "shift": self.shift is not None,
            "correction": self.shift is not None or self.correct_bias,
            "rotation": bool(self.rotation_block),
            "low_rank": bool(self.low_rank),
            "affine": self._codes_follow,
            "stored_codes": not self._codes_follow,
            "step_bits": self.step_bits is not None and self.act_bits < MAX_BITS,
            "token_groups": self.token_groups is not None,
        }
        made = {kind for kind, wanted in optional.items() if wanted}
        return self.smoothing_parts() | {"static"} | made  # text has no groups of tokens

    def layer_options(self, denoiser: nn.Module, chosen: set[str]) -> dict[str, dict[str, Any]]:
        folds = attention_folds(denoiser, self.rotation_block or DENSE) if self.fold_rotation else []
        options = {fqn: {"fold": fold} for group in folds if group.keys() <= chosen for fqn, fold in group.items()}
        if self.fold_rotation and not options:
            raise UserError(
                f"fold_rotation=true does nothing: no attention of {type(denoiser).__name__} is quantized as a whole"
            )
        groups = token_groups(denoiser, self.token_groups) if self.token_groups else {}
        for fqn, tokens in groups.items():
            options[fqn] = options.get(fqn, {}) | {"tokens": tokens}
        return options

    def layers(
        self, weights: dict[str, Tensor], stats: LayerStats, num_steps: int, options: dict[str, dict[str, Any]]
    ) -> dict[str, LayerQuant]:
        known: LayerInput | None = None
        found = {}
        for fqn, weight in weights.items():
            own = options.get(fqn, {})
            known = known or self._input(weight, stats, own.get("fold", NO_FOLD), own.get("tokens"))
            found[fqn] = self.layer(weight, stats, num_steps, known=known, **own)
        return found

    def layer(
        self,
        weight: Tensor,
        stats: LayerStats,
        num_steps: int,
        *,
        fold: Fold = NO_FOLD,
        tokens: TokenGroups | None = None,
        known: LayerInput | None = None,
    ) -> LayerQuant:
        """known: what is known of the input, where another layer has it too."""
        if weight.is_meta and (self.step_bits or self.clamp_acts or self.rounding == "gptq"):
            return self._of_equal_size().layer(weight, stats, num_steps, fold=fold, tokens=tokens)
        known = known or self._input(weight, stats, fold, tokens)
        outputs = (RotatedOutput(block=fold.output),) if fold.output else ()
        for output in outputs:
            weight = output.weight(weight)
        steps = torch.arange(num_steps, device=weight.device).clamp(max=known.num_steps - 1)
        transforms = self._transforms(weight, known, fold, steps)
        target = weight.detach().float()
        for transform in transforms:
            target = transform.weight(target, 0)
        branches: list[Branch] = [low_rank(target, self.low_rank)] if self.low_rank else []
        for branch in branches:
            target = target - branch.weight
        smoothing = next((part for part in transforms if isinstance(part, Smoothing)), None)
        seen = known.seen(smoothing and smoothing.factors)
        bits = self._bits(known).cpu()
        act = self._act(seen, bits, target)
        grid = self._grid(target)
        codes = self._codes(target, grid, seen)
        correction = None if known.shift is None else shift_correction(weight, known.shift)
        if self.correct_bias:
            left = _mean_error(seen, target, dequantize(codes, grid), act, bits)
            correction = left if correction is None else correction + left
        if correction is not None:
            branches.append(Correction(values=in_half(correction, "correction"), steps=steps))
        return LayerQuant(
            inputs=transforms,
            weight=self._weights(grid, codes, smoothing.steps if smoothing else torch.zeros_like(steps)),
            act=_acts(act, bits, seen, tokens, steps),
            branches=tuple(branches),
            outputs=outputs,
        )

    def _transforms(self, weight: Tensor, known: LayerInput, fold: Fold, steps: Tensor) -> tuple[InputTransform, ...]:
        """What happens to the input, in order; an input that arrives rotated is not smoothed."""
        found: list[InputTransform] = []
        if known.shift is not None:
            found.append(Shift(values=known.shift, steps=steps))
        if not fold.input and (smoothing := self.smoothing(weight, known.stats, known.num_steps)) is not None:
            found.append(Smoothing(factors=smoothing.factors, steps=smoothing.steps[steps]))
        if known.rotation:
            found.append((FoldedRotation if fold.input else Rotation)(block=known.rotation))
        return tuple(found)

    def tables(self, denoiser: nn.Module, stats: Stats, state: QuantState, timesteps: Tensor) -> dict[str, Table]:
        """step_bits: of every step, what was measured of it and the bits that follow, for inputs that change."""
        layer = next(iter(stats.layers.values()))
        measured = (layer.recorded.step_error, layer.recorded.step_change, self._step_bits(layer.recorded))
        times = [int(t) if t.is_integer() else t for t in timesteps.double().tolist()]  # 999, as samplers say it
        columns = zip(times, *(values.tolist() for values in measured), strict=True)
        names = ("timestep", "step_error", "step_change", "act_bits")
        rows = [{"step": step} | dict(zip(names, row, strict=True)) for step, row in enumerate(columns)]
        worst = int(measured[0].argmax())
        share = float(measured[0][worst] / measured[0].sum())
        return {"step_bits": Table(rows, f"step {worst} makes {share:.0%} of the error of quantized activations")}

    def _of_equal_size(self) -> StaticPlusMethod:
        """A method whose parameters have the same sizes and need no values."""
        kept = ("weight_bits", "act_bits", "alpha", "momentum", "ema_order", "shift", "rotation_block", "correct_bias")
        kept += ("fold_rotation", "low_rank", "token_groups")
        off = {"step_bits": None, "clamp_acts": False, "weight_grid": "minmax", "rounding": "nearest"}
        return StaticPlusMethod(**{name: getattr(self, name) for name in kept}, **off)

    def _input(self, weight: Tensor, stats: LayerStats, fold: Fold, tokens: TokenGroups | None) -> LayerInput:
        at_run_time = fitting_block(weight.shape[1], self.rotation_block) if self.rotation_block else 0
        return LayerInput(stats, self.shift, rotation=fold.input or at_run_time, tokens=tokens, damping=self.damping)

    def _bits(self, known: LayerInput) -> Tensor:
        """Activation bits of every step that is told apart, long."""
        return torch.tensor([self.act_bits]) if known.constant else self._step_bits(known.stats.recorded)

    def _step_bits(self, recorded: LayerInputs) -> Tensor:
        """Of every step, for inputs that change: long [N]."""
        if self.step_bits == "switched":
            return frozen_switch(recorded.step_change, self.act_bits)
        if self.step_bits == "spread":
            return spread_bits(recorded.step_error, self.act_bits)
        return torch.full((len(recorded.step_error),), self.act_bits)

    def _act(self, seen: SeenInput, bits: Tensor, target: Tensor) -> QParams:
        """Of every step, [N], of the relative rows."""
        ratios = RATIOS if self.clamp_acts else (1.0,)
        steps = zip(*seen.ranges, seen.relative, seen.of_rows, bits.tolist(), strict=True)
        steps = [_clamped(*step, target, ratios) for step in steps]
        return QParams(*(torch.stack(values) for values in zip(*steps, strict=True)))

    def _grid(self, target: Tensor) -> QParams:
        """Of the weight's codes, [out, 1] each."""
        if self.weight_grid == "refined":
            return refine_grid(target, bits=self.weight_bits)
        return qparams_from_range(*tensor_range(target, "per_channel"), bits=self.weight_bits)

    def _codes(self, target: Tensor, grid: QParams, seen: SeenInput) -> Tensor:
        """Integers in fp32 [out, in]."""
        if self.rounding == "nearest":
            return quantize(target, grid, bits=self.weight_bits)
        return gptq_codes(target, grid, seen.feedback, bits=self.weight_bits)

    def _weights(self, grid: QParams, codes: Tensor, steps: Tensor) -> AffineWeights:
        """With the codes where they do not follow from the weight and its grid."""
        weights = AffineWeights(
            bits=self.weight_bits, scale=grid.scale[None], zero_point=grid.zero_point[None], steps=steps
        )
        if self._codes_follow or codes.is_meta:
            return weights
        return weights.stored(pack_codes([codes], bits=self.weight_bits))

    @property
    def _codes_follow(self) -> bool:
        """Whether the codes of weights follow from rounding them to their grids."""
        return self.rounding == "nearest" and not self.low_rank


def _acts(act: QParams, bits: Tensor, seen: SeenInput, tokens: TokenGroups | None, steps: Tensor) -> StaticActs:
    """Of qparams [N] of the relative rows: those of the rows themselves, by group where tokens have groups."""
    form = {"bits": int(bits.max()), "steps": steps}
    form["step_bits"] = bits.to(steps.device) if bits.min() < bits.max() else None
    if seen.sizes is None:
        return StaticActs(scale=act.scale, zero_point=act.zero_point, **form)
    scale, zero_point = act.scale[:, None] * seen.sizes, act.zero_point[:, None].repeat(1, seen.sizes.shape[1])
    return TokenGroupActs(scale=scale, zero_point=zero_point, group=tokens.rows.to(steps.device), **form)


def _clamped(
    lo: Tensor, hi: Tensor, x: Tensor, sizes: Tensor, bits: int, weight: Tensor, ratios: tuple[float, ...]
) -> QParams:
    """Qparams of a step, of the range [r lo, r hi] with the least squared error of sizes x, x [n, in], times weight
    [out, in].
    """
    candidates = [qparams_from_range(ratio * lo, ratio * hi, bits=bits) for ratio in ratios]
    if len(candidates) == 1:
        return candidates[0]
    rounded = (fake_quantize(x, qparams, bits=bits) for qparams in candidates)
    errors = [((sizes * (xq - x)) @ weight.T).square().sum() for xq in rounded]
    return candidates[int(torch.stack(errors).argmin())]


def _mean_error(seen: SeenInput, target: Tensor, quantized: Tensor, act: QParams, bits: Tensor) -> Tensor:
    """What the layer's output lacks on average at every step: fp32 [N, out]."""
    lacking = []
    for x, size, scale, zero_point, step_bits in zip(seen.relative, seen.of_rows, *act, bits.tolist(), strict=True):
        xq = fake_quantize(x, QParams(scale, zero_point), bits=step_bits)
        lacking.append(((size * x) @ target.T - (size * xq) @ quantized.T).mean(0))
    return torch.stack(lacking)


def _one_of(name: str, value: Any, allowed: tuple) -> Any:
    if value not in allowed:
        raise UserError(f"{name}={value} must be one of {', '.join('null' if a is None else a for a in allowed)}")
    return value
