"""A bare GPU machine has torch, numpy and triton: what quantizes, runs and times layers imports with them alone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = ("vdq.quant", "vdq.backends", "vdq.diffusion", "vdq.benchmark")
# Imports every module of a room where any other package is as if it were not installed. torch's own packages are those
# that it has loaded, and those that it loads later with its compiler.
CODE = """
import importlib, importlib.abc, pkgutil, sys
import numpy, torch
import torch._dynamo.utils

allowed = {name.partition(".")[0] for name in sys.modules} | {"triton", "vdq", *sys.stdlib_module_names}
assert "pandas" not in allowed and "safetensors" not in allowed

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
room = importlib.import_module(sys.argv[1])
others = ("vdq.benchmark.peers.", "vdq.diffusion.schedulers")  # what is there for the sake of other libraries
for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
    if not module.name.startswith(others):
        importlib.import_module(module.name)
"""


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_with_torch_alone(room):
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", CODE, room], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
