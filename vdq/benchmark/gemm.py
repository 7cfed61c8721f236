"""Bare matrix products: the machine's peak, and the fused product whose output is bytes again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vdq.backends.cpu.matmul import KERNELS, OneDnnMatmul, failure
from vdq.benchmark.machine import Machine
from vdq.benchmark.rounds import KERNEL, Contender
from vdq.benchmark.work import Peaks

REPEATS = 5
U8_GEMM = "GEMM, u8 to u8"


def kernels(tokens: int, inputs: int, outputs: int, machine: Machine) -> list[Contender]:
    """Products of [tokens, inputs] with [inputs, outputs]: in full precision into one buffer, then in 8 bits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, weight = torch.randn(tokens, inputs), torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    return [_full(x, weight, machine), _integer(weight, tokens, machine)]


def peaks(shapes: list[tuple[int, int]], tokens: int, machine: Machine) -> Peaks:
    """The fastest speeds that the machine reaches over all shapes (inputs, outputs) and a few repetitions."""
    best: dict[int, tuple[float, str]] = {}
    for inputs, outputs in shapes:
        for place, kernel in enumerate(kernels(tokens, inputs, outputs, machine)):
            speed = 2 * tokens * inputs * outputs / _fastest(kernel, machine)
            best[place] = max(best.get(place, (0.0, "")), (speed, kernel.computes))
    return Peaks(best[0][0], best[1][0], best[0][1], best[1][1])


def _fastest(kernel: Contender, machine: Machine) -> float:
    def once() -> float:
        start = machine.now()
        kernel.run(0)
        return machine.now() - start

    once()
    return min(once() for _ in range(REPEATS))


def _full(x: Tensor, weight: Tensor, machine: Machine) -> Contender:
    x, weight = x.to(machine.device, machine.dtype), weight.to(machine.device, machine.dtype)
    out = torch.empty(len(x), len(weight), device=machine.device, dtype=machine.dtype)
    name = f"GEMM, {machine.full}"
    return Contender(
        name, KERNEL, f"torch.mm, {machine.full}, into one buffer", lambda _: torch.mm(x, weight.T, out=out)
    )


def _integer(weight: Tensor, tokens: int, machine: Machine) -> Contender:
    """The product in 8 bits. On the CPU the fastest that is exact: oneDNN's has everything static folded, and
    bytes in and out. On the GPU `_int_mm`, 32-bit integers out.
    """
    if machine.on_gpu:
        signed, other = _bytes(tokens, weight.shape[1]).view(torch.int8).to(machine.device), weight.to(machine.device).T
        name, computes, run = "GEMM, s8 to s32", "torch._int_mm", lambda _: torch._int_mm(signed, other)
    elif (bits := next((bits for bits in (8, 7) if failure(OneDnnMatmul.name, bits) is None), None)) is not None:
        end = 2 ** (bits - 1)
        name, computes = U8_GEMM, f"oneDNN, u8 x s{bits} -> u8, scale and zero point folded"
        run = _onednn(weight.clamp(-end, end - 1), tokens)
    else:
        kernel = next(kernel for kernel in KERNELS.values() if failure(kernel.name) is None)
        codes, matmul, scale = _bytes(tokens, weight.shape[1]), kernel(weight), torch.full((len(weight),), 1e-3)
        name, computes = "GEMM, u8 to fp32", f"{kernel.name}, u8 x s8 -> fp32, scale and zero point folded"
        run = lambda _: matmul(codes, 128, scale)  # noqa: E731
    return Contender(name, KERNEL, computes, run, facts={"linears": 1})


def _bytes(tokens: int, inputs: int) -> Tensor:
    return torch.randint(0, 256, (tokens, inputs), dtype=torch.uint8)


def _onednn(weight: Tensor, tokens: int) -> Callable[[int], Tensor]:
    outputs, inputs = weight.shape
    codes = _bytes(tokens, inputs)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zeros, bias = torch.full((outputs,), 1e-3), torch.zeros(outputs, dtype=torch.int32), torch.zeros(outputs)

    def run(_: int) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            codes, 0.02, 128, packed, scales, zeros, bias, 0.1, 128, torch.uint8, "none", [], ""
        )

    return run
