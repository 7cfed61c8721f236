"""The machine that is timed: its clock, its name, and how much of it other programs use."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vdq.machine import processor

STAT = Path("/proc/stat")
IDLE = (3, 4)  # idle and iowait among the columns of /proc/stat
COLUMNS = 8  # up to steal; guests are counted in user
SETTLE_SECONDS = 0.01


class Machine:
    """One device and the dtype that full precision has on it."""

    def __init__(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def full(self) -> str:
        """Full precision in two words or less."""
        return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]

    def now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def settle(self) -> None:
        time.sleep(SETTLE_SECONDS)

    def watch(self) -> Callable[[], float | None]:
        start, own, busy = time.perf_counter(), time.process_time(), _busy_seconds()

        def foreign() -> float | None:
            after = _busy_seconds()
            if busy is None or after is None:
                return None
            others = (after - busy) - (time.process_time() - own)
            available = (time.perf_counter() - start) * len(_cpus())
            return min(1.0, max(0.0, others / available))

        return foreign

    def describe(self) -> dict[str, Any]:
        """The facts of the machine that a result depends on."""
        return {
            "device": processor(self.device),
            "device_type": self.device.type,
            "dtype": self.full,
            "cpus": len(_cpus()),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def _cpus() -> set[int]:
    """The CPUs that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _busy_seconds() -> float | None:
    """Seconds that our CPUs were busy since the system started, whoever used them; None where it is no Linux."""
    if not STAT.is_file():
        return None
    wanted = {f"cpu{number}" for number in _cpus()}
    ticks = 0
    for name, *columns in (line.split() for line in STAT.read_text().splitlines() if line.startswith("cpu")):
        if name in wanted:
            ticks += sum(int(value) for place, value in enumerate(columns[:COLUMNS]) if place not in IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")
