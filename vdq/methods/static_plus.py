"""Static substitutes for what neighbouring systems measure at run time (spec/dvd_quant_and_qvd.md 3.3), as switches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vdq.methods.base import ABSMAX, RANGE, SAMPLES, SmoothedMethod, Table
from vdq.quant.affine import QParams, dequantize, fake_quantize, qparams_from_range, quantize, tensor_range
from vdq.quant.coded import pack_codes
from vdq.quant.folding import Fold, attention_folds
from vdq.quant.gptq import DAMPING, gptq_codes, gram
from vdq.quant.grid_refinement import refine_grid
from vdq.quant.low_rank import low_rank
from vdq.quant.params import LinearParams
from vdq.quant.rotation import DENSE, fitting_block, hadamard
from vdq.quant.smoothing import MOMENTUM, smoothed_range
from vdq.quant.state import QuantState
from vdq.quant.stats import LayerStats, Stats
from vdq.quant.step_bits import frozen_switch, spread_bits
from vdq.quant.token_groups import TOKEN_GROUPS, TokenGroups, group_sizes, token_groups
from vdq.quant.transform import rotate_output, shift_correction, transform_weight

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
    the step. rotation_block: block Hadamard of the smoothed channels, a power of two; where it does not divide the
    width of a layer, the largest one that does. fold_rotation: inputs of attention's `proj` arrive rotated, head by
    head and without smoothing, since the weights of the layers before are (vdq.quant.folding); of an attention that is
    not quantized as a whole, none is folded.
    low_rank: the rank of a branch in half precision that takes the largest directions of every weight.
    step_bits: "spread" gives each step the bits that its error deserves (vdq.quant.step_bits), "switched" is delta-GBS
    frozen. token_groups: the tokens of each "frame" or latent "position" have a scale of their own, that of all in
    proportion to their root mean square; text has one. clamp_acts: the range of every step is narrowed to the share of
    1 to 0.4 with the least error of the layer's output. weight_grid: "minmax" or "refined" (BGR). rounding: "nearest"
    or "gptq", which minimizes the error of the layer's output over all steps, with its `damping`. correct_bias: the
    mean error of every output that is left is taken off at each step.

    Raises ValueError for a value outside these.
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
            raise ValueError(f"rotation_block={rotation_block} must be 0 or a power of two")
        if not isinstance(low_rank, int) or low_rank < 0:
            raise ValueError(f"low_rank={low_rank} must be 0 or a positive integer")
        self.rotation_block, self.fold_rotation, self.low_rank = rotation_block, fold_rotation, low_rank
        self.clamp_acts, self.correct_bias = clamp_acts, correct_bias
        if damping <= 0:
            raise ValueError(f"damping={damping} must be a number above 0")
        self.damping = damping

    def needs(self, fqn: str) -> frozenset[str]:
        return frozenset({RANGE, ABSMAX, SAMPLES})

    def layer_options(self, denoiser: nn.Module, chosen: set[str]) -> dict[str, dict[str, Any]]:
        folds = attention_folds(denoiser, self.rotation_block or DENSE) if self.fold_rotation else []
        options = {fqn: {"fold": fold} for group in folds if group.keys() <= chosen for fqn, fold in group.items()}
        groups = token_groups(denoiser, self.token_groups) if self.token_groups else {}
        for fqn, tokens in groups.items():
            options[fqn] = options.get(fqn, {}) | {"tokens": tokens}
        return options

    def layer(
        self,
        weight: Tensor,
        stats: LayerStats,
        num_steps: int,
        *,
        fold: Fold = NO_FOLD,
        tokens: TokenGroups | None = None,
    ) -> LinearParams:
        if weight.is_meta and (self.step_bits or self.clamp_acts or self.rounding == "gptq"):
            return self._of_equal_size().layer(weight, stats, num_steps, fold=fold, tokens=tokens)
        weight = rotate_output(weight, fold.output)
        rotation = fold.input or self._block(weight)
        constant = _constant(stats)
        if constant:
            stats = _of_one_step(stats)
        shift = self._shift(stats)
        if shift is not None:
            stats = _shifted(stats, shift)
        s, weight_range = self.smoothing(weight, stats, num_steps)
        s = None if fold.input else s
        target = transform_weight(weight, None if s is None else s[0], rotation)
        branch = low_rank(target, self.low_rank) if self.low_rank else None
        target = target if branch is None else target - branch.weight
        inputs = _transformed(stats, s, rotation)
        bits = self._bits(stats, num_steps, constant).cpu()
        sizes, of_rows = _token_sizes(inputs, stats, tokens)
        relative = inputs / of_rows
        ranges = _step_ranges(stats, s, relative if rotation or tokens is not None else None)
        act = self._act(ranges, relative, of_rows, bits, target)
        grid = self._grid(target)
        codes = self._codes(target, grid, inputs)
        correction = None if shift is None else shift_correction(weight, shift)
        if self.correct_bias:
            left = _mean_error(relative, of_rows, target, dequantize(codes, grid), act, bits)
            correction = left if correction is None else correction + left
        return LinearParams(
            weight_bits=self.weight_bits,
            act_bits=int(bits.max()),
            weight=QParams(*(values[None] for values in grid)),
            weight_range=weight_range,
            act=act if sizes is None else _of_groups(act, sizes),
            act_range=torch.arange(num_steps, device=weight.device),
            act_group=None if tokens is None else tokens.rows.to(weight.device),
            smoothing=s,
            codes=self._packed(codes),
            shift=shift,
            rotation=rotation,
            correction=correction,
            step_bits=bits.to(weight.device) if bits.min() < bits.max() else None,
            low_rank=branch,
            folded=bool(fold.input),
            out_rotation=fold.output,
        )

    def tables(self, denoiser: nn.Module, stats: Stats, state: QuantState, timesteps: Tensor) -> dict[str, Table]:
        """step_bits: of every step, what was measured of it and the bits that follow, for inputs that change."""
        layer = next(iter(stats.layers.values()))
        measured = (layer.samples.step_error, layer.samples.step_change, self._bits(layer, len(timesteps), False))
        columns = zip(timesteps.tolist(), *(values.tolist() for values in measured), strict=True)
        names = ("timestep", "step_error", "step_change", "act_bits")
        rows = [{"step": step} | dict(zip(names, row, strict=True)) for step, row in enumerate(columns)]
        worst = int(measured[0].argmax())
        share = float(measured[0][worst] / measured[0].sum())
        return {"step_bits": Table(rows, f"step {worst} makes {share:.0%} of the error of quantized activations")}

    def _of_equal_size(self) -> StaticPlusMethod:
        """A recipe whose parameters have the same sizes and need no values."""
        kept = ("weight_bits", "act_bits", "alpha", "momentum", "ema_order", "shift", "rotation_block", "correct_bias")
        kept += ("fold_rotation", "low_rank", "token_groups")
        off = {"step_bits": None, "clamp_acts": False, "weight_grid": "minmax", "rounding": "nearest"}
        return StaticPlusMethod(**{name: getattr(self, name) for name in kept}, **off)

    def _block(self, weight: Tensor) -> int:
        """Of the rotation at run time."""
        return fitting_block(weight.shape[1], self.rotation_block) if self.rotation_block else 0

    def _shift(self, stats: LayerStats) -> Tensor | None:
        """[N, in] fp32, or None."""
        if self.shift == "mid":
            return (stats.min + stats.max) / 2
        return stats.samples.inputs.float().mean(1) if self.shift == "mean" else None

    def _bits(self, stats: LayerStats, num_steps: int, constant: bool) -> Tensor:
        """Activation bits of every step, long [N]."""
        if self.step_bits is None or constant:
            return torch.full((num_steps,), self.act_bits)
        if self.step_bits == "switched":
            return frozen_switch(stats.samples.step_change, self.act_bits)
        return spread_bits(stats.samples.step_error, self.act_bits)

    def _act(
        self, ranges: tuple[Tensor, Tensor], relative: Tensor, sizes: Tensor, bits: Tensor, target: Tensor
    ) -> QParams:
        """Of every step, [N]: ranges two [N]; relative and sizes as of _token_sizes."""
        ratios = RATIOS if self.clamp_acts else (1.0,)
        steps = zip(*ranges, relative, sizes, bits.tolist(), strict=True)
        steps = [_clamped(*step, target, ratios) for step in steps]
        return QParams(*(torch.stack(values) for values in zip(*steps, strict=True)))

    def _grid(self, target: Tensor) -> QParams:
        """Of the weight's codes, [out, 1] each."""
        if self.weight_grid == "refined":
            return refine_grid(target, bits=self.weight_bits)
        return qparams_from_range(*tensor_range(target, "per_channel"), bits=self.weight_bits)

    def _codes(self, target: Tensor, grid: QParams, inputs: Tensor) -> Tensor:
        """Integers in fp32 [out, in]."""
        if self.rounding == "nearest":
            return quantize(target, grid, bits=self.weight_bits)
        return gptq_codes(target, grid, gram(inputs), bits=self.weight_bits, damping=self.damping)

    def _packed(self, codes: Tensor) -> Tensor | None:
        """Codes that do not follow from the weight and its grid."""
        follow = self.rounding == "nearest" and not self.low_rank
        return None if follow or codes.is_meta else pack_codes([codes], bits=self.weight_bits)


def _constant(stats: LayerStats) -> bool:
    """Whether the input is the same at every step, as text is: with equal parameters the layer then runs once."""
    bounds = () if stats.min.is_meta else (stats.min, stats.max)
    return bool(bounds) and all(torch.equal(bound, bound[:1].expand_as(bound)) for bound in bounds)


def _of_one_step(stats: LayerStats) -> LayerStats:
    """With the inputs that were recorded at the first step at all of them."""
    repeated = {name: getattr(stats.samples, name) for name in ("inputs", "places")}
    repeated = {name: rows[:1].expand_as(rows) for name, rows in repeated.items()}
    return replace(stats, samples=stats.samples._replace(**repeated))


def _shifted(stats: LayerStats, shift: Tensor) -> LayerStats:
    """Statistics of X - shift; the row maxima, which are not known, become the maxima of all rows."""
    lo, hi = stats.min - shift, stats.max - shift
    samples = stats.samples._replace(inputs=stats.samples.inputs.float() - shift[:, None])
    return replace(
        stats, min=lo, max=hi, abs_sum=torch.maximum(-lo, hi).double() * stats.rows[:, None], samples=samples
    )


def _transformed(stats: LayerStats, s: Tensor | None, rotation: int) -> Tensor:
    """The recorded inputs as the quantizer sees them: fp32 [N, n, in]."""
    x = stats.samples.inputs.float()
    x = x if s is None else x / s[0]
    return hadamard(x, rotation) if rotation else x


def _token_sizes(inputs: Tensor, stats: LayerStats, tokens: TokenGroups | None) -> tuple[Tensor | None, Tensor]:
    """Of the groups [N, G], or None without; of the recorded rows [N, n, 1], [N, 1, 1] ones without groups. Divided by
    them, the rows of all groups have one grid.
    """
    if tokens is None:
        return None, inputs.new_ones(len(inputs), 1, 1)
    groups = tokens.of(stats.samples.places)
    sizes = group_sizes(inputs, groups, tokens.count)
    return sizes, sizes.gather(1, groups)[..., None]


def _of_groups(act: QParams, sizes: Tensor) -> QParams:
    """Of every step and group, [N, G]: act [N] of rows divided by the sizes [N, G] of their groups."""
    return QParams(act.scale[:, None] * sizes, act.zero_point[:, None].repeat(1, sizes.shape[1]))


def _step_ranges(stats: LayerStats, s: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Range of the whole tensor at every step, two [N]: only recorded rows know that of a rotation or of groups."""
    if rows is not None:
        return rows.flatten(1).amin(1), rows.flatten(1).amax(1)
    return smoothed_range(stats.min, stats.max, None if s is None else s[0])


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


def _mean_error(
    relative: Tensor, sizes: Tensor, target: Tensor, quantized: Tensor, act: QParams, bits: Tensor
) -> Tensor:
    """What the layer's output lacks on average at every step: fp32 [N, out]."""
    lacking = []
    for x, size, scale, zero_point, step_bits in zip(relative, sizes, *act, bits.tolist(), strict=True):
        xq = fake_quantize(x, QParams(scale, zero_point), bits=step_bits)
        lacking.append(((size * x) @ target.T - (size * xq) @ quantized.T).mean(0))
    return torch.stack(lacking)


def _one_of(name: str, value: Any, allowed: tuple) -> Any:
    if value not in allowed:
        raise ValueError(f"{name}={value} must be one of {', '.join('null' if a is None else a for a in allowed)}")
    return value
