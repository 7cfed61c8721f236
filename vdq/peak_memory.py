"""How much memory a piece of work needed at its highest point."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GIGABYTE = 1e9


class PeakMemory:
    """Context manager; afterwards ``gigabytes`` is the peak inside it, 1e9 bytes, or None where it cannot be told.

    On CUDA: what PyTorch's allocator had given out. Elsewhere: the process's resident memory, memory-mapped files
    included, which Linux alone reports.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.gigabytes: float | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # not Linux, or not allowed: the peak since the program's start is told instead
                CLEAR.write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.gigabytes = torch.cuda.max_memory_allocated(self.device) / GIGABYTE
        else:
            self.gigabytes = _resident_peak()

    def __str__(self) -> str:
        return "unknown" if self.gigabytes is None else f"{self.gigabytes:.1f} GB on {self.device.type}"


def _resident_peak() -> float | None:
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIGABYTE
    return None
