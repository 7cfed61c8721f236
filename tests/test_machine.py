"""What a result says of the machine, from a made-up /proc/cpuinfo."""

import pytest
import torch

from vdq import machine
from vdq.benchmark.machine import Machine

FIRST = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu avx2{flags}\n"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """Writes it, two processors with these flags."""
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    for name in machine.LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def write(flags=""):
        text = FIRST.format(flags=flags)
        (tmp_path / "cpuinfo").write_text(f"{text}\n{text.replace('A CPU', 'Another')}")

    return write


def test_the_cpu_its_instructions_and_their_limits(cpuinfo, monkeypatch):
    cpuinfo(" avx512f avx512_vnni")
    found = machine.describe("cpu")
    assert found["processor"] == "A CPU @ 2 GHz, AVX512, VNNI"
    assert (found["cpu_family"], found["cpu_model"], found["limits"]) == ("25", "1", {})
    assert found["instructions"] == ["avx2", "avx512f", "avx512_vnni"] and found["threads"] >= 1
    assert found["device_name"] == "A CPU @ 2 GHz" and Machine().describe()["device"] == found["processor"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.processor("cpu") == "A CPU @ 2 GHz, AVX512, VNNI, ONEDNN_MAX_CPU_ISA=AVX2"
    assert machine.describe("cpu")["limits"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_the_newest_instructions_are_named(cpuinfo):
    cpuinfo(" avx512f avx512_vnni amx_int8 amx_tile")
    assert machine.processor("cpu") == "A CPU @ 2 GHz, AVX512, VNNI, AMX"
    cpuinfo()
    assert machine.processor("cpu") == "A CPU @ 2 GHz, AVX512"


def test_a_system_that_tells_nothing_has_a_name_and_unknown_instructions(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "missing")
    assert machine.cpu_name() and machine.describe("cpu")["instructions"] is None


def test_a_gpu_is_named_by_its_product(cpuinfo, monkeypatch):
    cpuinfo()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    assert machine.processor("cuda") == machine.device_name("cuda:1") == "A GPU"
