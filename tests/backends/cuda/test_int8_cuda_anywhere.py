"""What needs no GPU: int8_cuda in Triton's interpreter, in a process that chooses it before triton is imported, and the
machine code that Triton makes for GPUs that are not there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vdq.backends import Int8CudaBackend
from vdq.backends.cuda import backend as int8_cuda
from vdq.backends.cuda.backend import interpreted, unavailable

if unavailable() == "Triton is not installed":
    pytest.skip("Triton is not installed", allow_module_level=True)
if interpreted():
    pytest.skip("Triton compiles nothing where it interprets", allow_module_level=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="test_int8_cuda.py runs on the GPU")
@pytest.mark.parametrize("speed", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_everything_in_the_interpreter(speed):
    tests = Path(__file__).with_name("test_int8_cuda.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", speed, str(tests)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0 and " passed" in ran.stdout, ran.stdout + ran.stderr


def test_no_gpu_and_no_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="^backend int8_cuda cannot run here: there is no CUDA device, and TRITON"):
        Int8CudaBackend()
    monkeypatch.setattr(int8_cuda, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^backend int8_cuda cannot run here: Triton is not installed$"):
        Int8CudaBackend()


POINTERS = {
    "i8": {"codes", "weight"},
    "i32": {"sums", "x_zero", "w_total", "w_offset", "slots", "ranges", "next_zero", "next_sums", "zeros"}
    | {f"zero{part}" for part in range(3)},
    "fp32": {"x_scale", "w_scale", "bias", "gate", "next_factor", "scale", "shift", "position", "scales"}
    | {f"table{part}" for part in range(3)},
    "fp16": {"x", "residual"},
    "i64": {"step"},
}


def compiled(kernel, out: str = "fp16", capability: int = 90, warps: int = 4, stages: int = 3, **constants):
    """Machine code and its stages, for a GPU that need not be there."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: f"*{dtype}" for dtype, names in POINTERS.items() for name in names} | {"out": f"*{out}"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {(number,): [["tt.divisibility", 16]] for number, name in enumerate(signature) if name not in constants}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages}
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm


LINEAR = {"PER_TOKEN": False, "OFFSET": True, "BIAS": True, "NEXT_BITS": 8, "EVEN_K": True}
MODES = {
    "sums": ("i32", {"GELU": False, "GATE": "none", "NEXT_SUMS": False}),
    "float": ("fp16", {"GELU": False, "GATE": "none", "NEXT_SUMS": False}),
    "add": ("fp16", {"GELU": False, "GATE": "tile", "NEXT_SUMS": False}),
    "codes": ("i8", {"GELU": True, "GATE": "none", "NEXT_SUMS": True}),
}
QUANTIZE = {"SWAP": False, "POSITION": False, "SYMMETRIC": False, "SHARED": False, "BITS": 8, "BLOCK_R": 2}


@pytest.mark.parametrize(
    ("capability", "instruction"),
    [
        (90, "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8"),
        pytest.param(80, "s32.s8.s8.s32", marks=pytest.mark.slow),
    ],
)
def test_products_compile_to_integer_tensor_cores(capability, instruction):
    from vdq.backends.cuda.kernels import linear_kernel

    out, flags = MODES["sums"]
    blocks = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "GROUP_M": 8}
    asm = compiled(linear_kernel.fn, out, capability, MODE="sums", **blocks, **LINEAR, **flags)
    assert instruction in asm["ptx"] and asm["cubin"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_configuration_compiles(mode):
    from vdq.backends.cuda.kernels import linear_kernel

    for choice in linear_kernel.configs:
        out, flags = MODES[mode]
        options = {"warps": choice.num_warps, "stages": choice.num_stages}
        asm = compiled(linear_kernel.fn, out, MODE=mode, **options, **choice.kwargs, **LINEAR, **flags)
        assert "s32.s8.s8" in asm["ptx"]


@pytest.mark.parametrize("norm", [False, True])
def test_static_means_static_inside_the_kernel(norm):
    """The only reductions of a static kernel are the norm's two sums; a dynamic one has a minimum and a maximum."""
    from vdq.backends.cuda.kernels import quantize_kernel

    options = QUANTIZE | {"NORM": norm, "PARTS": 1, "SUMS": False, "BLOCK_C": 2048}
    static = compiled(quantize_kernel, DYNAMIC=False, TABLE=True, **options)
    dynamic = compiled(quantize_kernel, DYNAMIC=True, TABLE=False, **options)
    assert static["ttir"].count('"tt.reduce"') == 2 * norm
    assert dynamic["ttir"].count('"tt.reduce"') == 2 * norm + 2
    assert ("div.rn.f32" in static["ptx"]) == (not norm)  # correctly rounded, as the simulation divides
