"""A pipeline of diffusers that is driven from outside: its own code runs, and lets us in at four places.

Prompts are encoded by themselves and given back when the pipeline asks for them, so that text encoders need not be in
memory while it denoises; its loop over the steps can be passed over, so that it decodes given latents or only makes its
schedule; the scheduler's steps can be watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from vdq.errors import UserError

ENCODERS = ("encode_prompt", "encode_image")  # methods of pipelines that call encoders


class EncodedInputs(Exception):
    """Leaves a call of a pipeline when everything that encoders give it has been recorded."""


class Driven:
    """Mixed into the class of a pipeline (`driven_class`).

    recorded: what each call of a method of ENCODERS returned, in order, or, when `given` is there, has to return.
    given_latents: take the place of the initial ones. prepared: the shape of the initial ones of the last call.
    passes_over: no step is made. only_checks: a call ends before it asks an encoder.
    """

    place = torch.device("cpu")
    given: list[Any] | None = None
    given_latents: Tensor | None = None
    prepared: torch.Size | None = None
    passes_over = False
    only_checks = False

    @property
    def _execution_device(self) -> torch.device:
        return self.place

    @property
    def interrupt(self) -> bool:
        return self.passes_over

    def prepare_latents(self, *args: Any, **named: Any) -> Any:
        if self.given is None and (self.only_checks or self.recorded):  # some prepare them before they ask encoders
            raise EncodedInputs
        made = super().prepare_latents(*args, **named)
        initial, *rest = made if isinstance(made, tuple) else (made,)
        self.prepared = initial.shape
        if self.given_latents is None:
            return made
        latents = self.given_latents.to(initial)
        return (latents, *rest) if isinstance(made, tuple) else latents

    def encoded(self, **named: Any) -> list[Any]:
        """What its encoders make of the inputs of a call, in the order in which it asks them."""
        self.given, self.recorded = None, []
        try:
            with _ending_at(self.scheduler):
                self(**named)
        except EncodedInputs:
            return self.recorded
        raise RuntimeError(f"{type(self).__name__} has made a video without a schedule")

    def checked(self, **named: Any) -> None:
        """Lets it check the inputs of a call, which ends where it asks for the first encoding."""
        self.given, self.only_checks = None, True
        try:
            self(**named)
        except EncodedInputs:
            pass
        finally:
            self.only_checks = False

    @contextmanager
    def giving(self, encoded: list[Any], *, latents: Tensor | None = None, pass_over: bool = False) -> Iterator[None]:
        """Inside the block, calls get these encodings and no encoder is asked."""
        self.given, self.given_latents, self.passes_over, self._asked = encoded, latents, pass_over, 0
        try:
            yield
        finally:
            self.given, self.given_latents, self.passes_over = None, None, False

    def _ask(self, encode: Callable[..., Any], args: tuple, named: dict[str, Any]) -> Any:
        if self.only_checks:
            raise EncodedInputs
        if self.given is None:
            self.recorded.append(encode(*args, **named))
            return self.recorded[-1]
        self._asked += 1
        if self._asked > len(self.given):  # encodings drawn for a text do not hold an image's
            raise UserError(f"{type(self).__name__} can do this after its prompts are encoded")
        found = self.given[self._asked - 1]
        if named.get("do_classifier_free_guidance") is False and isinstance(found, tuple) and len(found) == 2:
            return found[0], None  # what a text encoder would give; the recorded call was one with guidance
        return found


def driven_class(kind: type) -> type:
    """The class of a pipeline with `Driven` mixed in."""
    methods = {name: _asking(name) for name in ENCODERS if hasattr(kind, name)}
    return type(kind.__name__, (Driven, kind), methods)


def _asking(name: str) -> Callable[..., Any]:
    def method(self: Driven, *args: Any, **named: Any) -> Any:
        return self._ask(getattr(super(Driven, self), name), args, named)

    return method


@contextmanager
def _ending_at(scheduler: Any) -> Iterator[None]:
    """Inside, a call ends where it makes its schedule, for which every pipeline has asked its encoders before."""

    @wraps(scheduler.set_timesteps)  # pipelines read from the signature what else they may hand over
    def ending(*_: Any, **__: Any) -> None:
        raise EncodedInputs

    scheduler.set_timesteps = ending
    try:
        yield
    finally:
        del scheduler.set_timesteps


@contextmanager
def watching(scheduler: Any, denoisers: list[nn.Module], seen: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Inside, seen(estimate, latents) is called after every step, before a denoiser is called again: with what the
    scheduler was given last, guidance done, and with what it made of it. Cosmos 1 asks the scheduler twice a step.
    """
    step, last = scheduler.step, []

    @wraps(step)
    def watched(estimate: Tensor, *args: Any, **named: Any) -> Any:
        made = step(estimate, *args, **named)
        last[:] = [(estimate, made[0] if isinstance(made, tuple) else made.prev_sample)]
        return made

    def tell(*_: Any) -> None:
        if last:
            seen(*last.pop())

    scheduler.step = watched
    handles = [denoiser.register_forward_pre_hook(tell, prepend=True) for denoiser in denoisers]
    try:
        yield
        tell()
    finally:
        del scheduler.step
        for handle in handles:
            handle.remove()
