"""A block with random weights, calibrated and quantized as a whole model is: for its speed only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vdq.backends.base import Backend
from vdq.backends.integer import integer_weight_bytes
from vdq.benchmark.machine import Machine
from vdq.benchmark.rounds import FULL, INTEGER, SIMULATED, Contender
from vdq.diffusion.clock import StepClock
from vdq.methods.base import Method
from vdq.models.one_block import OneBlock
from vdq.quant.convert import apply
from vdq.quant.observers import Observer
from vdq.quant.recorded_inputs import RecordedInputs
from vdq.quant.search import InputRecorder
from vdq.quant.state import QuantState
from vdq.quant.stats import Stats

SWITCHING = "another step each call"


class Part(nn.Module):
    """A module with all its arguments but the first fixed: x -> y, of several results the first. Peers get it."""

    def __init__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        super().__init__()
        self.module, self.args, self.kwargs = module, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x, *self.args, **self.kwargs)
        return y[0] if isinstance(y, tuple) else y


class RandomBlock:
    """A denoiser of one block of each kind and what is timed of it: its blocks and modules within them, by fqn. The
    inputs of these are what they get in the first step.
    """

    def __init__(self, one: OneBlock, machine: Machine) -> None:
        self.one, self.machine, self.net = one, machine, one.net
        self.clock = StepClock(len(one.timesteps))

    @cached_property
    def placed(self) -> nn.Module:
        """The network in full precision, on the device."""
        same = self.machine.device.type == "cpu" and self.machine.dtype == torch.float32
        return self.net if same else self._place(copy.deepcopy(self.net))

    def stats(self, done: Callable[[], Any] = lambda: None) -> Stats:
        """Statistics of every step, by the observers that calibrate a whole model; `done` is called after each."""
        net = self.net.to(self.machine.device)
        clock = self.clock.to(self.machine.device)
        steps = range(clock.num_steps)
        recorder = InputRecorder(net, clock, self.one.quantizable, steps)
        with torch.no_grad(), Observer(net, clock, self.one.quantizable) as observer, recorder:
            for step in steps:
                self._call(net, step, torch.float32)
                done()
        self.net.to("cpu")
        counted = torch.ones(len(steps)), torch.zeros(len(steps))  # all steps are alike
        recorded = RecordedInputs.of_steps(recorder.inputs, recorder.places, *counted, "")
        return observer.stats(num_prompts=1).with_inputs(recorded)

    def state(self, method: Method, stats: Stats) -> QuantState:
        return method.convert(
            self.net,
            stats,
            num_steps=self.clock.num_steps,
            quantizable=self.one.quantizable,
            timesteps=self.one.timesteps,
        )

    def full(self, fqn: str) -> tuple[Part, Tensor]:
        """A module in full precision and its first argument; of a linear as a matrix [tokens, channels]."""
        x, args, named = self._captured(self.placed, fqn)
        x = x.flatten(0, -2) if fqn in self.one.linears else x
        return Part(self.placed.get_submodule(fqn), args, named), x.contiguous()

    def quantized(self, fqn: str, state: QuantState, backend: Backend) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """A quantized copy of a module, and its call: of a linear by itself, of the others within the block."""
        if fqn in self.one.linears:
            alone = nn.Sequential(self.net.get_submodule(fqn))
            net = self._place(apply(alone, QuantState({"0": state.layers[fqn]}, state.num_steps), self.clock, backend))
            return net, net
        net = self._place(apply(self.net, state, self.clock, backend))
        if fqn == self.one.chain:
            name, _, inner = fqn.rpartition(".")
            block = net.get_submodule(name)
            chain = block.get_submodule(inner)
            return chain, _fused_chain(block) if hasattr(block, "ops") else chain
        block, (_, args, named) = net.get_submodule(fqn), self._captured(net, fqn)
        return block, Part(block, args, named)

    def _captured(self, net: nn.Module, fqn: str) -> tuple[Tensor, tuple, dict]:
        """What a module gets in the first step: its first argument, the others, and those by name."""
        seen: list[tuple[tuple, dict]] = []
        hook = net.get_submodule(fqn).register_forward_pre_hook(
            lambda _, args, named: seen.append((args, dict(named))), with_kwargs=True
        )
        with torch.no_grad():
            self._call(net, 0, self.machine.dtype)
        hook.remove()
        args, named = seen[0]
        if not args:
            args = (named.pop(next(iter(named))),)
        return args[0], args[1:], named

    def _call(self, net: nn.Module, step: int, dtype: torch.dtype) -> None:
        self.clock.set(step)
        args, named = tree_map_only(Tensor, lambda t: t.to(self.machine.device), self.one.inputs(step, dtype))
        net(*args, **named)

    def _place(self, net: nn.Module) -> nn.Module:
        return net.to(self.machine.dtype).to(self.machine.device)


def contenders(
    block: RandomBlock, fqn: str, methods: list[tuple[str, Backend]], states: dict[str, QuantState]
) -> list[Contender]:
    """Contenders: full precision and the methods (name, backend), those with a weight set for each time range also with
    another step in every call. `states` has the parameters by name.
    """
    module, x = block.full(fqn)
    expected, base = module(x), x if fqn in block.one.blocks else None
    weights = [linear.weight for linear in module.modules() if isinstance(linear, nn.Linear)]
    facts = {"weight_bytes": sum(weight.nbytes for weight in weights), "weight_sets": 1}
    rows = [Contender(FULL, FULL, f"torch, {block.machine.full}", lambda _: module(x), facts=facts)]
    for name, backend in methods:
        net, call = block.quantized(fqn, states[name], backend)
        facts = weight_facts(net, states[name]) | {"error": relative_error(call(x), expected, base)}
        rows += _method(name, backend, block.clock, lambda call=call: call(x), facts)
    return rows


def _method(name: str, backend: Backend, clock: StepClock, call: Callable[[], Tensor], facts: dict) -> list[Contender]:
    kind, steps = SIMULATED if backend.simulated else INTEGER, count()

    def at_one_step(_: int) -> Tensor:
        clock.set(0)
        return call()

    def at_the_next_step(_: int) -> Tensor:
        clock.set(next(steps) % clock.num_steps)
        return call()

    rows = [Contender(name, kind, backend.arithmetic, at_one_step, facts=facts)]
    if facts["weight_sets"] > 1 and kind == INTEGER:
        rows.append(Contender(f"{name}, {SWITCHING}", kind, backend.arithmetic, at_the_next_step, facts=facts))
    return rows


def weight_facts(net: nn.Module, state: QuantState) -> dict[str, int]:
    """Weight sets of a layer, at most, and the memory of the integer weights of all of them; whether it is static."""
    sets = max(quant.weight.num_sets for quant in state.layers.values())
    held = integer_weight_bytes(net)
    static = all(quant.act.static for quant in state.layers.values())
    return {"static": static, "weight_sets": sets} | ({"weight_bytes": held} if held else {})


def relative_error(y: Tensor, expected: Tensor, base: Tensor | None = None) -> float:
    """||y - expected|| / ||expected - base||: of a residual block, `base` is what it adds to."""
    y, expected = (value.detach().float().cpu().reshape(expected.shape) for value in (y, expected))
    return float((y - expected).norm() / (expected - (0 if base is None else base.float().cpu())).norm())


def _fused_chain(block: nn.Module) -> Callable[[Tensor], Tensor]:
    """A call of fc1, GELU and fc2 with the operations of a fused block (vdq.backends.fused_block)."""
    ops, mlp = block.ops, block.mlp

    def call(x: Tensor) -> Tensor:
        (codes,) = ops.quantize(x, [mlp.fc1])
        (y,) = ops.linears([mlp.fc2], [ops.gelu_quantize(mlp.fc1, codes, mlp.fc2)])
        return y.view(x.shape)

    return call
