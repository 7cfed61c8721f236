"""Quantization recipes."""

from vdq.methods.base import Method
from vdq.methods.dynamic import DynamicMethod
from vdq.methods.full_precision import FullPrecisionMethod
from vdq.methods.static import StaticMethod

__all__ = ["DynamicMethod", "FullPrecisionMethod", "Method", "StaticMethod"]
