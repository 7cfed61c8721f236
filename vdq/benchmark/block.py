"""A block with random weights, calibrated and quantized as a whole model is: for its speed only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from vdq.backends.base import Backend
from vdq.backends.integer import integer_weight_bytes
from vdq.benchmark.family import BLOCK_FQN, CHAIN, LINEARS, random_inputs, random_network
from vdq.benchmark.machine import Machine
from vdq.benchmark.plan import Plan
from vdq.benchmark.rounds import FULL, INTEGER, SIMULATED, Contender
from vdq.diffusion.clock import StepClock
from vdq.diffusion.schedule import Schedule
from vdq.methods.base import Method
from vdq.quant.convert import apply
from vdq.quant.observers import Observer
from vdq.quant.recorded_inputs import RecordedInputs
from vdq.quant.search import InputRecorder
from vdq.quant.state import QuantState
from vdq.quant.stats import Stats

BLOCK = ""  # the module within the block that is the block itself
SWITCHING = "another step each call"


class Part(nn.Module):
    """A module with all its arguments but the first fixed: x -> y. It is what peers get."""

    def __init__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        super().__init__()
        self.module, self.args, self.kwargs = module, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, *self.args, **self.kwargs)


class RandomBlock:
    """A denoiser of one block; a part of it is "mlp.fc1", "mlp", or "" for the whole block. Its inputs are those of the
    schedule's first step, with noise for latents and captions.
    """

    def __init__(self, plan: Plan, schedule: Schedule, machine: Machine) -> None:
        self.plan, self.schedule, self.machine = plan, schedule, machine
        self.clock = StepClock(schedule.num_steps)
        self.net = random_network(plan)

    @cached_property
    def placed(self) -> nn.Module:
        """The network in full precision, on the device."""
        same = self.machine.device.type == "cpu" and self.machine.dtype == torch.float32
        return self.net if same else self._place(copy.deepcopy(self.net))

    def stats(self, done: Callable[[], Any] = lambda: None) -> Stats:
        """Statistics of every step, by the observers that calibrate a whole model; `done` is called after each."""
        net = self.net.to(self.machine.device)
        clock = self.clock.to(self.machine.device)
        steps = self.schedule.num_steps
        recorder = InputRecorder(net, clock, quantizable, range(steps))
        with torch.no_grad(), Observer(net, clock, quantizable) as observer, recorder:
            for step in range(steps):
                clock.set(step)
                net(*self.inputs(step, torch.float32))
                done()
        self.net.to("cpu")
        counted = torch.ones(steps), torch.zeros(steps)  # all steps are alike
        recorded = RecordedInputs.of_steps(recorder.inputs, recorder.places, *counted, "")
        return observer.stats(num_prompts=1).with_inputs(recorded)

    def state(self, method: Method, stats: Stats) -> QuantState:
        return method.convert(
            self.net,
            stats,
            num_steps=self.schedule.num_steps,
            quantizable=quantizable,
            timesteps=self.schedule.timesteps,
        )

    def full(self, part: str) -> tuple[Part, Tensor]:
        """A part in full precision and its first argument; of a linear as a matrix [tokens, channels]."""
        module = self.placed.get_submodule(BLOCK_FQN).get_submodule(part)
        args, kwargs = self._captured(self.placed, part)
        x = args[0].flatten(0, -2) if part in LINEARS else args[0]
        return Part(module, args[1:], kwargs), x.contiguous()

    def quantized(self, part: str, state: QuantState, backend: Backend) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """A quantized copy of a part, and its call: of a linear by itself, of the others within the block."""
        if part in LINEARS:
            name = f"{BLOCK_FQN}.{part}"
            alone = nn.Sequential(self.net.get_submodule(name))
            net = self._place(apply(alone, QuantState({"0": state.layers[name]}, state.num_steps), self.clock, backend))
            return net, net
        net = self._place(apply(self.net, state, self.clock, backend))
        block = net.get_submodule(BLOCK_FQN)
        if part == CHAIN:
            return block.mlp, _fused_chain(block) if hasattr(block, "ops") else block.mlp
        args, kwargs = self._captured(net, part)
        return block, lambda x: block(x, *args[1:], **kwargs)

    def _captured(self, net: nn.Module, part: str) -> tuple[tuple, dict]:
        """Arguments that a part of the first block gets in the first step."""
        seen: list[tuple[tuple, dict]] = []
        target = net.get_submodule(BLOCK_FQN).get_submodule(part)
        hook = target.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
        with torch.no_grad():
            self.clock.set(0)
            net(*self.inputs(0, self.machine.dtype))
        hook.remove()
        return seen[0]

    def inputs(self, step: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Arguments of the denoiser at a step: latents, timestep and captions."""
        latents, timestep, captions = random_inputs(self.net, self.schedule.timesteps[step], step)
        device = self.machine.device
        return latents.to(device, dtype), timestep.to(device), captions.to(device, dtype)

    def _place(self, net: nn.Module) -> nn.Module:
        return net.to(self.machine.dtype).to(self.machine.device)


def quantizable(fqn: str) -> bool:
    return fqn.startswith(f"{BLOCK_FQN}.")


def contenders(
    block: RandomBlock, part: str, methods: list[tuple[str, Backend]], states: dict[str, QuantState]
) -> list[Contender]:
    """Contenders: full precision and the methods (name, backend), those with a weight set for each time range also with
    another step in every call. `states` has the parameters by name.
    """
    module, x = block.full(part)
    expected, base = module(x), x if part == BLOCK else None
    weights = [linear.weight for linear in module.modules() if isinstance(linear, nn.Linear)]
    facts = {"weight_bytes": sum(weight.nbytes for weight in weights), "weight_sets": 1}
    rows = [Contender(FULL, FULL, f"torch, {block.machine.full}", lambda _: module(x), facts=facts)]
    for name, backend in methods:
        net, call = block.quantized(part, states[name], backend)
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
