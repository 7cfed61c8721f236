"""What became of every layer, and the size of the quantized model."""

import math
from collections import Counter
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor, nn

from vdq.quant.layers import projections
from vdq.quant.params import CODES, LinearParams
from vdq.quant.sharing import shift_owners
from vdq.quant.smoothing import smoothed_range
from vdq.quant.state import LayerReport, QuantState
from vdq.quant.stats import LayerStats, Stats
from vdq.quant.transform import restore_weight

MEGABYTE = 1e6


@dataclass(frozen=True)
class ModelSize:
    """Sizes in MB (1e6 bytes). weights: codes of all ranges at their bit-width; scales: with zero points, and
    codebooks; branches: low-rank ones; tables: all else that layers need, smoothing factors, shifts, once an input,
    corrections, and tables of steps and groups; full_precision: everything else in the state dict, biases included.
    original: the model before; half: with 16 bits for each of its numbers. elements: quantized weights, in millions.
    """

    weights: float
    scales: float
    branches: float
    tables: float
    full_precision: float
    original: float
    half: float
    elements: float

    @property
    def parameters(self) -> float:
        """What quantized layers need beside their codes."""
        return self.scales + self.branches + self.tables

    @property
    def total(self) -> float:
        return self.weights + self.parameters + self.full_precision

    @property
    def bits_per_weight(self) -> float | None:
        """Of the quantized layers with all that they need; None without one."""
        return 8 * (self.weights + self.parameters) / self.elements if self.elements else None


def model_size(denoiser: nn.Module, state: QuantState) -> ModelSize:
    """Size of `denoiser` (the original) when stored quantized as `state` says."""
    quantized = {p.fqn: p.weight for p in projections(denoiser) if p.fqn in state.layers}
    owners = shift_owners(denoiser, state.layers)
    parts: Counter[str] = Counter()
    for fqn, weight in quantized.items():
        parts.update(_layer_bytes(state.layers[fqn], weight, owners.get(fqn, fqn) == fqn))
    stored = list(denoiser.state_dict().values())
    original = sum(map(_bytes, stored))
    return ModelSize(
        **{part: parts[part] / MEGABYTE for part in ("weights", "scales", "branches", "tables")},
        full_precision=(original - sum(map(_bytes, quantized.values()))) / MEGABYTE,
        original=original / MEGABYTE,
        half=sum(2 * tensor.numel() for tensor in stored) / MEGABYTE,
        elements=sum(weight.numel() for weight in quantized.values()) / MEGABYTE,
    )


def layer_reports(
    denoiser: nn.Module, layers: dict[str, LinearParams], stats: Stats | None, *, reason: str
) -> tuple[LayerReport, ...]:
    """One row per linear projection and per other module with a weight matrix; `reason` is why linears were left."""
    rows, inside, owners = [], set(), shift_owners(denoiser, layers)
    for p in projections(denoiser):
        inside.add(p.input_fqn)
        params = layers.get(p.fqn)
        if params is None:
            rows.append(LayerReport(p.fqn, tuple(p.weight.shape), "full_precision", reason=reason))
        else:
            seen = stats.layers.get(p.input_fqn) if stats else None
            size = sum(_layer_bytes(params, p.weight, owners.get(p.fqn, p.fqn) == p.fqn).values())
            rows.append(_quantized(p.fqn, p.weight, params, seen, 8 * size / p.weight.numel()))
    for fqn, module in denoiser.named_modules():
        weight = getattr(module, "weight", None)
        if fqn not in inside and isinstance(weight, Tensor) and weight.dim() > 1:
            why = f"{type(module).__name__} is not a linear layer"
            rows.append(LayerReport(fqn, tuple(weight.shape), "full_precision", reason=why))
    return tuple(rows)


def weight_error(weight: Tensor, params: LinearParams) -> float:
    """Relative L2 error of the quantized weight, transformed back, over all ranges; 0 for a zero weight."""
    weight = weight.detach().float()
    norm = float(weight.norm()) * params.num_weight_ranges**0.5
    errors = [_range_error(weight, params, range_) for range_ in range(params.num_weight_ranges)]
    return math.hypot(*errors) / norm if norm > 0 else 0.0


def act_range_spread(stats: LayerStats, params: LinearParams) -> float:
    """Width of the widest step's range over that of the narrowest, both of (X - shift) / s, not rotated, and extended
    to contain 0.
    """
    tables = (params.step_smoothing(), params.step_shift())
    lo, hi = smoothed_range(stats.min, stats.max, *(None if t is None else t.to(stats.min.device) for t in tables))
    width = hi.clamp(min=0) - lo.clamp(max=0)
    return float(width.max() / width.min()) if width.max() > 0 else 1.0


def _quantized(
    fqn: str, weight: Tensor, params: LinearParams, stats: LayerStats | None, bits_per_weight: float
) -> LayerReport:
    return LayerReport(
        fqn,
        tuple(weight.shape),
        "static" if params.static else "dynamic",
        weight_bits=params.weight_bits,
        act_bits=params.act_bits,
        weight_ranges=params.num_weight_ranges,
        act_ranges=params.num_act_ranges,
        weight_error=weight_error(weight, params),
        act_range_spread=act_range_spread(stats, params) if stats else None,
        mean_act_bits=params.mean_act_bits,
        act_groups=params.num_act_groups,
        rotation=params.rotation,
        bits_per_weight=bits_per_weight,
    )


def mean_act_bits(state: QuantState) -> float | None:
    """Activation bits over steps and quantized layers; None in full precision or if they are chosen while sampling."""
    bits = [params.mean_act_bits for params in state.layers.values()]
    return None if None in bits or not bits else mean(bits)


def _range_error(weight: Tensor, params: LinearParams, range_: int) -> float:
    """L2 norm of what one range's quantization changes in the weight [out, in] fp32."""
    transformed = params.dequantized_weight(weight, range_)
    if params.low_rank is not None:
        transformed += params.low_rank.weight
    restored = restore_weight(transformed, params.range_smoothing(range_), params.rotation, params.out_rotation)
    return float((restored - weight).norm())


def _layer_bytes(params: LinearParams, weight: Tensor, stores_shift: bool) -> Counter[str]:
    """By fields of ModelSize; a shift that another layer stores is not counted."""
    parts = Counter(weights=params.num_weight_ranges * weight.numel() * params.weight_bits / 8)
    for name, tensor in params.tensors().items():
        if name != CODES and (name != "shift" or stores_shift):
            parts[_part(name)] += _bytes(tensor)
    return parts


def _part(name: str) -> str:
    """The field of ModelSize that a tensor of LinearParams counts to."""
    if name.startswith("low_rank"):
        return "branches"
    return "scales" if name.endswith(("_scale", "_zero_point")) or name.startswith("codebook") else "tables"


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
