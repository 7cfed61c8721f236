"""Quantization methods, a file or a folder each.

Methods whose authors published no code are rebuilt from what is known of them. Tags in the text say how: [C] confirmed
by what the authors published, [S] second-hand, from summaries of their paper, [I] inferred here, where nothing says it.
"""

from vdq.methods.base import Method
from vdq.methods.dvd_quant.method import DVDQuantMethod
from vdq.methods.dynamic import DynamicMethod
from vdq.methods.full_precision import FullPrecisionMethod
from vdq.methods.qvd.method import QvdMethod
from vdq.methods.static import StaticMethod
from vdq.methods.static_plus.method import StaticPlusMethod

__all__ = [
    "DVDQuantMethod",
    "DynamicMethod",
    "FullPrecisionMethod",
    "Method",
    "QvdMethod",
    "StaticMethod",
    "StaticPlusMethod",
]
