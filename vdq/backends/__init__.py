"""Execution backends of quantized layers."""

from vdq.backends.base import Backend
from vdq.backends.fake_quant import FakeQuantBackend
from vdq.backends.int8_cpu import Int8CpuBackend
from vdq.backends.int8_cuda import Int8CudaBackend
from vdq.backends.reference import ReferenceBackend

__all__ = ["Backend", "FakeQuantBackend", "Int8CpuBackend", "Int8CudaBackend", "ReferenceBackend"]
