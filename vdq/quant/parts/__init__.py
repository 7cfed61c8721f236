"""The parts that a quantized layer is composed of, a file for each slot; `base` says how to make a new one."""

from vdq.quant.parts.acts import CodebookActs, PerTokenActs, PerVideoActs, StaticActs, TokenGroupActs, TokenSharedActs
from vdq.quant.parts.base import ActQuantizer, Branch, InputTransform, OutputTransform, Part, Runtime, WeightQuantizer
from vdq.quant.parts.branches import Correction, LowRank
from vdq.quant.parts.inputs import FoldedRotation, RotatedOutput, Rotation, Shift, Smoothing
from vdq.quant.parts.weights import AffineWeights, StoredWeights

__all__ = [
    "ActQuantizer",
    "AffineWeights",
    "Branch",
    "CodebookActs",
    "Correction",
    "FoldedRotation",
    "InputTransform",
    "LowRank",
    "OutputTransform",
    "Part",
    "PerTokenActs",
    "PerVideoActs",
    "RotatedOutput",
    "Rotation",
    "Runtime",
    "Shift",
    "Smoothing",
    "StaticActs",
    "StoredWeights",
    "TokenGroupActs",
    "TokenSharedActs",
    "WeightQuantizer",
]
