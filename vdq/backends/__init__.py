"""Execution backends of quantized layers."""

from vdq.backends.base import Backend
from vdq.backends.fake_quant import FakeQuantBackend

__all__ = ["Backend", "FakeQuantBackend"]
