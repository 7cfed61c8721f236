"""torch.compile in full precision and on torchao's 8-bit linears, of both of its ways: `quantize_`, and PT2E with
Inductor's quantizer for x86.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from vdq.benchmark.machine import Machine
from vdq.benchmark.rounds import PEER, Contender

COMPILED = "torch.compile"
PACKED = "qlinear_weight_prepack_matcher_count"  # Inductor's count of the linears that became integer kernels


def compiled(module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
    run = _compile(module, x)
    return [Contender(COMPILED, PEER, f"Inductor, {machine.full}", run)]


def dynamic(module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
    """torchao with symmetric s8 codes and a scale for each token."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantized = copy.deepcopy(module)
    quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
    return [_contender("torchao dynamic", "quantize_, s8 per token, compiled", quantized, x)]


def static(module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
    """torchao with symmetric s8 codes and a scale for each tensor, taken from x."""
    from torchao.quantization import Int8StaticActivationInt8WeightConfig, PerRow, PerTensor, quantize_

    quantized = copy.deepcopy(module)
    for fqn, scale in _scales(quantized, x).items():
        config = Int8StaticActivationInt8WeightConfig(act_quant_scale=scale, granularity=[PerTensor(), PerRow()])
        quantize_(quantized, config, filter_fn=lambda _, name, fqn=fqn: name == fqn)
    return [_contender("torchao static", "quantize_, s8 per tensor, compiled", quantized, x)]


def x86_dynamic(module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
    return [_x86(module, x, is_dynamic=True)]


def x86_static(module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
    return [_x86(module, x, is_dynamic=False)]


def _x86(module: nn.Module, x: Tensor, *, is_dynamic: bool) -> Contender:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config(is_dynamic=is_dynamic))
    prepared = prepare_pt2e(torch.export.export(module, (x,)).module(), quantizer)
    prepared(x)
    converted = convert_pt2e(prepared)
    name = f"torchao x86 {'dynamic' if is_dynamic else 'static'}"
    packed = counters["inductor"][PACKED]
    with torch._inductor.config.patch(freezing=True):  # weights become constants, which the quantized kernels need
        run = _compile(converted, x)
    linears = counters["inductor"][PACKED] - packed
    return Contender(name, PEER, "PT2E, Inductor for x86, u8, compiled", run, COMPILED, {"linears": linears})


def _contender(name: str, computes: str, quantized: nn.Module, x: Tensor) -> Contender:
    linears = sum(type(m.weight).__name__ == "Int8Tensor" for m in quantized.modules() if isinstance(m, nn.Linear))
    return Contender(name, PEER, computes, _compile(quantized, x), COMPILED, {"linears": linears})


def _compile(module: nn.Module, x: Tensor) -> Callable[[int], Tensor]:
    """Compiles the module for the shape of x, now; returns its call."""
    torch._dynamo.reset()  # compiled code of others of the same class counts against a limit
    call = torch.compile(module, dynamic=False)
    call(x)
    return lambda _: call(x)


def _scales(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Largest absolute input / 127 of every linear, with as many dimensions as the input."""
    found: dict[str, Tensor] = {}

    def record(fqn: str, value: Tensor) -> None:
        found[fqn] = (value.abs().amax() / 127).reshape((1,) * value.dim())

    linears = [(fqn, m) for fqn, m in module.named_modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda _, args, fqn=fqn: record(fqn, args[0])) for fqn, m in linears]
    module(x)
    for hook in hooks:
        hook.remove()
    return found
