"""What became of every layer, and the size of the quantized model."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import mean

from torch import Tensor, nn

from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import Projection, projections
from vdq.quant.parts import FoldedRotation, Rotation
from vdq.quant.set_bytes import SetBytes
from vdq.quant.sharing import SharedTensors
from vdq.quant.state import LayerReport, QuantState
from vdq.quant.stats import LayerStats, Stats

MEGABYTE = 1e6


@dataclass(frozen=True)
class ModelSize:
    """Sizes in MB (1e6 bytes) of what is stored. weights: codes of all ranges at their bit-width; sources: original
    weights of quantized layers, which kept steps need, and which are stored instead of codes where all sets of codes
    would take more (vdq.quant.set_bytes); scales: with zero points, and codebooks; branches: low-rank ones; tables: all
    else that layers need, smoothing factors, shifts, once an input, corrections, and tables of steps and groups;
    full_precision: everything else in the state dict, biases included. all_codes: what codes of all ranges take,
    whether they are stored or not.
    original: the model before; half: with 16 bits for each of its numbers. elements: quantized weights, in millions.
    """

    weights: float
    scales: float
    branches: float
    tables: float
    sources: float
    full_precision: float
    original: float
    half: float
    elements: float
    all_codes: float

    @property
    def parameters(self) -> float:
        """What quantized layers need beside their codes."""
        return self.scales + self.branches + self.tables

    @property
    def total(self) -> float:
        return self.weights + self.parameters + self.sources + self.full_precision

    @property
    def bits_per_weight(self) -> float | None:
        """Bits for each quantized weight with all that its layer needs; None without a quantized layer."""
        return 8 * (self.weights + self.parameters + self.sources) / self.elements if self.elements else None


def model_size(denoiser: nn.Module, state: QuantState) -> ModelSize:
    """Size of `denoiser` (the original) when stored quantized as `state` says."""
    quantized = [p for p in projections(denoiser) if p.fqn in state.layers]
    shared, parts = SharedTensors(), Counter()
    for p in quantized:
        parts.update(layer_bytes(p, state.layers[p.fqn], shared, kept_steps=state.kept_steps))
    stored = list(denoiser.state_dict().values())
    original = sum(map(_bytes, stored))
    all_codes = sum(map(code_bytes, (state.layers[p.fqn] for p in quantized), (p.weight for p in quantized)))
    return ModelSize(
        **{part: parts[part] / MEGABYTE for part in ("weights", "scales", "branches", "tables", "sources")},
        full_precision=(original - sum(_bytes(p.weight) for p in quantized)) / MEGABYTE,
        original=original / MEGABYTE,
        half=sum(2 * tensor.numel() for tensor in stored) / MEGABYTE,
        elements=sum(p.weight.numel() for p in quantized) / MEGABYTE,
        all_codes=all_codes / MEGABYTE,
    )


def layer_reports(
    denoiser: nn.Module,
    layers: dict[str, LayerQuant],
    stats: Stats | None,
    *,
    reason: str,
    kept: Mapping[str, str] | None = None,
    kept_steps: tuple[int, ...] = (),
) -> tuple[LayerReport, ...]:
    """One row per linear projection and per other module with a weight matrix; `reason` is why linears were left, and
    `kept` has the pattern of those that the user wants so. The weights of a denoiser on the meta device have no error.
    """
    rows, inside, shared, kept = [], set(), SharedTensors(), kept or {}
    for p in projections(denoiser):
        inside.add(p.input_fqn)
        quant = layers.get(p.fqn)
        if quant is None:
            why = f"quant.keep has {kept[p.fqn]}" if p.fqn in kept else reason
            rows.append(LayerReport(p.fqn, tuple(p.weight.shape), "full_precision", reason=why))
        else:
            seen = stats.layers.get(p.input_fqn) if stats else None
            size = sum(layer_bytes(p, quant, shared, kept_steps=kept_steps).values())
            row = _quantized(p.fqn, p.weight, quant, seen, 8 * size / p.weight.numel())
            more = {"kept_steps": kept_steps, "mean_act_bits": quant.act.mean_bits_beside(kept_steps)}
            rows.append(replace(row, **more, stored=_stored(p.weight, quant, kept_steps)))
    for fqn, module in denoiser.named_modules():
        weight = getattr(module, "weight", None)
        if fqn not in inside and isinstance(weight, Tensor) and weight.dim() > 1:
            why = f"{type(module).__name__} is not a linear layer"
            rows.append(LayerReport(fqn, tuple(weight.shape), "full_precision", reason=why))
    return tuple(rows)


def weight_error(weight: Tensor, quant: LayerQuant) -> float:
    """Relative L2 error of the quantized weight, transformed back, over all its sets; 0 for a zero weight."""
    weight = weight.detach().float()
    norm = float(weight.norm()) * quant.weight.num_sets**0.5
    errors = [_set_error(weight, quant, set_) for set_ in range(quant.weight.num_sets)]
    return math.hypot(*errors) / norm if norm > 0 else 0.0


def act_range_spread(stats: LayerStats, quant: LayerQuant) -> float | None:
    """Width of the widest step's range over that of the narrowest, both extended to contain 0, after those transforms
    of the input that tell it (shift and smoothing; a rotation does not). None where a step's range has no width.
    """
    stats = stats.calls if quant.per_branch else stats
    lo, hi = stats.min, stats.max
    for transform in quant.inputs:
        if (after := transform.extremes(lo, hi)) is None:
            break
        lo, hi = after
    width = hi.amax(-1).clamp(min=0) - lo.amin(-1).clamp(max=0)
    if width.max() == 0:
        return 1.0
    return float(width.max() / width.min()) if width.min() > 0 else None


def mean_act_bits(state: QuantState) -> float | None:
    """Activation bits over quantized steps and layers; None in full precision or if they are chosen while sampling."""
    bits = [quant.act.mean_bits_beside(state.kept_steps) for quant in state.layers.values()]
    return None if None in bits or not bits else mean(bits)


def _quantized(
    fqn: str, weight: Tensor, quant: LayerQuant, stats: LayerStats | None, bits_per_weight: float
) -> LayerReport:
    rotation = quant.part(Rotation.kind) or quant.part(FoldedRotation.kind)
    return LayerReport(
        fqn,
        tuple(weight.shape),
        "static" if quant.act.static else "dynamic",
        weight_bits=quant.weight.bits,
        act_bits=quant.act.bits,
        weight_ranges=quant.weight.num_sets,
        act_ranges=quant.act.num_ranges,
        weight_error=None if weight.is_meta else weight_error(weight, quant),
        act_range_spread=act_range_spread(stats, quant) if stats else None,
        act_groups=quant.act.num_groups,
        rotation=rotation.block if rotation else 0,
        bits_per_weight=bits_per_weight,
        per_branch=quant.per_branch,
    )


def _set_error(weight: Tensor, quant: LayerQuant, set_: int) -> float:
    """L2 norm of what one set's quantization changes in the weight [out, in] fp32."""
    transformed = quant.dequantized_weight(weight, set_)
    for branch in quant.branches:
        if branch.holds_weight:
            transformed += branch.weight
    return float((quant.restored_weight(transformed, set_) - weight).norm())


def layer_bytes(
    p: Projection, quant: LayerQuant, shared: SharedTensors, *, kept_steps: tuple[int, ...] = ()
) -> Counter[str]:
    """Of one layer by fields of ModelSize; a tensor that is stored under another name is not counted."""
    size = SetBytes.stored(p.weight, quant, held=bool(kept_steps))
    from_weight = size is not None and size.from_weight
    sizes = Counter(weights=0 if from_weight else code_bytes(quant, p.weight))
    if kept_steps or from_weight:
        sizes["sources"] += _bytes(p.weight)
    stored_as = shared.stored_as(p, quant)
    for part in quant.parts:
        for name, tensor in part.tensors().items():
            if name not in part.on_host and stored_as[full := f"{p.fqn}.{part.kind}.{name}"] == full:
                sizes[part.size_field if tensor.is_floating_point() else "tables"] += _bytes(tensor)
    return sizes


def code_bytes(quant: LayerQuant, weight: Tensor) -> float:
    """What the codes of all weight sets of a layer take at their bit-width."""
    return quant.weight.num_sets * weight.numel() * quant.weight.bits / 8


def _stored(weight: Tensor, quant: LayerQuant, kept_steps: tuple[int, ...]) -> str:
    """What is stored of several weight sets, in words."""
    size = SetBytes.stored(weight, quant, held=bool(kept_steps))
    return size.line(size.from_weight) if size is not None and size.sets > 1 else ""


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
