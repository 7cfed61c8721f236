"""A pipeline driven from outside: the clock follows its scheduler, and nothing in the pipeline knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vdq.diffusion.clock import BRANCHES, StepClock
from vdq.diffusion.timesteps import of_call
from vdq.errors import UserError


@contextmanager
def clock_follows(
    clock: StepClock, denoiser: nn.Module, scheduler: Any, calls_a_step: int | None = 1
) -> Iterator[None]:
    """Inside the block `clock` is set before every call of the denoiser: to the step at which the scheduler stands and,
    where a step takes two calls, to the branch of the call, the conditional one first.

    `scheduler` is one of diffusers' kind: its `step_index` says the step, or, where it has none, the place of the
    call's `timestep` among its timesteps. Without calls_a_step a step takes any number of calls, whose branches are not
    known. Raises RuntimeError when a step takes more calls, UserError when the timestep of a call is none of the
    schedule, or the schedule has another number of timesteps than the clock has steps.
    """
    calls = {"step": -1, "number": 0}

    def tell(module: nn.Module, inputs: tuple, named_inputs: dict[str, Any]) -> None:
        if len(scheduler.timesteps) != clock.num_steps:
            raise UserError(
                f"{type(scheduler).__name__} makes {len(scheduler.timesteps)} timesteps of sampler.steps="
                f"{clock.num_steps}, which must be as many"
            )
        step = _step(scheduler, lambda: of_call(module, inputs, named_inputs))
        calls["number"] = calls["number"] + 1 if calls["step"] == step else 0
        calls["step"] = step
        if calls_a_step is not None and calls["number"] >= calls_a_step:
            raise RuntimeError(f"step {step} calls the denoiser more than {calls_a_step} times, as its family says")
        clock.set(step, BRANCHES[calls["number"]] if calls_a_step == len(BRANCHES) else None)

    handle = denoiser.register_forward_pre_hook(tell, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def _step(scheduler: Any, timestep: Callable[[], Tensor]) -> int:
    if hasattr(scheduler, "step_index"):
        return (
            scheduler.step_index if scheduler.step_index is not None else getattr(scheduler, "begin_index", None) or 0
        )
    now = timestep().flatten()[0].to(scheduler.timesteps.device)
    places = (scheduler.timesteps == now).nonzero().flatten()
    if len(places) == 0:
        raise UserError(f"timestep {float(now):g} of a call is none of the schedule's, {scheduler.timesteps.tolist()}")
    return int(places[0])
