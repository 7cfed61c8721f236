"""The machine that computes: its name, and what else the last digits of a result depend on beside the program."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")
# Each rounds or sums products in its own order or, as VNNI, without an intermediate sum of 16 bits.
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
# Environment variables that keep ATen, oneDNN or MKL from instructions that the processor has.
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")


def describe(device: torch.device | str) -> dict[str, Any]:
    """What digits depend on beside the program: the processor, its instruction sets, their limits, torch and threads.

    `processor` is for people: the product name of a GPU; of a CPU also what ATen uses of it, VNNI, AMX, and the limits
    that are set. `instructions` are those of INSTRUCTIONS that the CPU has, None where the system does not tell;
    `cpu_family` and `cpu_model` are numbers that tell generations of the same name apart.
    """
    facts = _cpu_facts()
    flags = facts.get("flags", "").split()
    return {
        "processor": processor(device),
        "device_name": device_name(device),
        "cpu_family": facts.get("cpu family"),
        "cpu_model": facts.get("model"),
        "instructions": [name for name in INSTRUCTIONS if name in flags] if flags else None,
        "aten": torch.backends.cpu.get_cpu_capability(),
        "limits": _limits(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def processor(device: torch.device | str) -> str:
    """The name under which tables list a device, such as 'AMD EPYC, AVX2' or that of a GPU."""
    if torch.device(device).type == "cuda":
        return device_name(device)
    flags = _cpu_facts().get("flags", "")
    more = [name.upper() for name in ("vnni", "amx") if name in flags]
    limits = [f"{name}={value}" for name, value in _limits().items()]
    return ", ".join([cpu_name(), torch.backends.cpu.get_cpu_capability(), *more, *limits])


def device_name(device: torch.device | str) -> str:
    """The product name of a GPU, the processor's otherwise."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else cpu_name()


def cpu_name() -> str:
    """The product name where the system tells it, else the architecture."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def _cpu_facts() -> dict[str, str]:
    """Fields of the first processor that Linux lists; empty elsewhere."""
    if not CPUINFO.is_file():
        return {}
    first = CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def _limits() -> dict[str, str]:
    return {name: os.environ[name] for name in LIMITS if name in os.environ}
