"""Quantization numerics and the parts of a quantized layer; imports torch only."""

from vdq.quant.affine import QParams
from vdq.quant.call_counter import CallCounter
from vdq.quant.convert import apply, quantized_layers
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import Projection, projections, receiving_modules
from vdq.quant.observers import Observer
from vdq.quant.report import ModelSize, model_size
from vdq.quant.state import LayerReport, QuantState
from vdq.quant.stats import LayerStats, Stats
from vdq.quant.time_ranges import PER_STEP, TimeRanges

__all__ = [
    "PER_STEP",
    "CallCounter",
    "LayerQuant",
    "LayerReport",
    "LayerStats",
    "ModelSize",
    "Observer",
    "Projection",
    "QParams",
    "QuantState",
    "Stats",
    "TimeRanges",
    "apply",
    "model_size",
    "projections",
    "quantized_layers",
    "receiving_modules",
]
