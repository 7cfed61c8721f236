"""A pipeline driven from outside: the clock follows its scheduler, and nothing in the pipeline knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from vdq.diffusion.clock import BRANCHES, StepClock


@contextmanager
def clock_follows(clock: StepClock, denoiser: nn.Module, scheduler: Any, calls_a_step: int = 1) -> Iterator[None]:
    """Inside, `clock` is set before every call of the denoiser: to the step at which the scheduler stands and, where a
    step takes two calls, to the branch of the call, the conditional one first.

    `scheduler` is one of diffusers' kind: `step_index` is None before its first step. Raises RuntimeError when a step
    takes more calls.
    """
    calls = {"step": -1, "number": 0}

    def tell(module: nn.Module, inputs: tuple, named_inputs: dict[str, Any]) -> None:
        step = scheduler.step_index or 0
        calls["number"] = calls["number"] + 1 if calls["step"] == step else 0
        calls["step"] = step
        if calls["number"] >= calls_a_step:
            raise RuntimeError(f"step {step} calls the denoiser more than {calls_a_step} times, as its family says")
        clock.set(step, BRANCHES[calls["number"]] if calls_a_step == len(BRANCHES) else None)

    handle = denoiser.register_forward_pre_hook(tell, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()
