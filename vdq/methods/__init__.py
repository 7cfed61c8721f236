"""Quantization recipes."""

from vdq.methods.base import Method
from vdq.methods.dvd_quant import DVDQuantMethod
from vdq.methods.dynamic import DynamicMethod
from vdq.methods.full_precision import FullPrecisionMethod
from vdq.methods.qvd import QvdMethod
from vdq.methods.static import StaticMethod
from vdq.methods.static_plus import StaticPlusMethod

__all__ = [
    "DVDQuantMethod",
    "DynamicMethod",
    "FullPrecisionMethod",
    "Method",
    "QvdMethod",
    "StaticMethod",
    "StaticPlusMethod",
]
