"""Execution backends of quantized layers."""

from vdq.backends.base import Backend
from vdq.backends.cpu.backend import Int8CpuBackend
from vdq.backends.cuda.backend import Int8CudaBackend
from vdq.backends.fake_quant import FakeQuantBackend
from vdq.backends.reference import ReferenceBackend

__all__ = ["Backend", "FakeQuantBackend", "Int8CpuBackend", "Int8CudaBackend", "ReferenceBackend"]
