"""Other libraries' 8-bit linears, timed beside ours; all of them are optional."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from vdq.benchmark.machine import Machine
from vdq.benchmark.rounds import Contender

INSTALL = "pip install -e '.[peers]'"
# W8A8 stays within 2 % on a linear; twice that, and half as much again for blocks, still shows a wrong result.
MAX_ERROR = 0.05


@dataclass(frozen=True)
class Peer:
    """`make` is "module:function" below this package, called with (module, x, machine, folder): a full-precision module
    with the one argument x, to be left as it is, and a folder for its files. It returns contenders whose `run` gives
    the output. needs: what has to be importable. gpu: whether it runs there.
    """

    make: str
    needs: tuple[str, ...]
    gpu: bool = False

    def unavailable(self, machine: Machine) -> str | None:
        """Why it cannot run here, or None."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed; {INSTALL}"
        return "runs on the CPU only" if machine.on_gpu and not self.gpu else None

    def contenders(self, module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
        name, _, function = self.make.partition(":")
        make: Callable = getattr(importlib.import_module(f"{__name__}.{name}"), function)
        return make(module, x, machine, folder)


_ONNX = ("onnx", "onnxscript", "onnxruntime")
PEERS = {
    "torch_compile": Peer("torch_ao:compiled", (), gpu=True),
    "torchao_dynamic": Peer("torch_ao:dynamic", ("torchao",), gpu=True),
    "torchao_static": Peer("torch_ao:static", ("torchao",), gpu=True),
    "torchao_x86_dynamic": Peer("torch_ao:x86_dynamic", ("torchao",)),
    "torchao_x86_static": Peer("torch_ao:x86_static", ("torchao",)),
    "onnxruntime_static": Peer("onnx_qdq:onnxruntime_static", _ONNX),
    "openvino_static": Peer("onnx_qdq:openvino_static", (*_ONNX, "openvino")),
}


def versions() -> dict[str, str]:
    """The versions of the packages that are installed."""
    needed = sorted({name for peer in PEERS.values() for name in peer.needs})
    return {name: version(name) for name in needed if find_spec(name) is not None}
