"""Other libraries compute the same linear, in integers, and say so; a missing one is told by name."""

import importlib.util

import pytest
import torch

from vdq.benchmark import peers
from vdq.benchmark.block import relative_error
from vdq.benchmark.family import BLOCK_FQN
from vdq.benchmark.machine import Machine
from vdq.benchmark.peers import MAX_ERROR, PEERS

SLOW = {"torch_compile", "torchao_dynamic", "torchao_static", "torchao_x86_dynamic", "torchao_x86_static"}


def test_missing_packages_are_told_with_the_command(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    reason = PEERS["openvino_static"].unavailable(Machine())
    assert reason == f"onnx, onnxscript, onnxruntime, openvino not installed; {peers.INSTALL}"
    assert PEERS["torch_compile"].unavailable(Machine()) is None and peers.versions() == {}


def test_some_run_on_the_cpu_only(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    assert PEERS["onnxruntime_static"].unavailable(Machine("cuda")) == "runs on the CPU only"
    assert PEERS["torchao_static"].unavailable(Machine("cuda")) is None


@pytest.mark.parametrize("part", ["blocks.0.mlp.fc1", pytest.param(BLOCK_FQN, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PEERS]
)
def test_same_result_in_integers(random_block, name, part, tmp_path):
    missing = [package for package in PEERS[name].needs if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    module, x = random_block.full(part)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        rows = PEERS[name].contenders(module, x, Machine(), tmp_path)
        expected = module(x)
        errors = [
            relative_error(torch.as_tensor(row.run(0)), expected, x if part == BLOCK_FQN else None) for row in rows
        ]
    assert max(errors) < MAX_ERROR
    if name != "torch_compile":
        # 13 linears with q, k, v in one are 9. That of the constant captions may be computed beforehand, and Inductor
        # for x86 misses one more.
        linears = rows[-1].facts["linears"]
        assert linears in ((7, 8, 9) if part == BLOCK_FQN else (1,)) and errors[-1] > 1e-4
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
