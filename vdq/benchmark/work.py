"""How many operations a call needs, and how fast it could be: the arithmetic floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vdq.quant.layers import receiving_modules

ATTENTION = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)  # what products of two activations are


class Work(NamedTuple):
    """Operations of matrix products, two a multiply-add: of linears that methods quantize, and of all others."""

    linear: int
    other: int


class Peaks(NamedTuple):
    """Operations a second that this machine's own matrix products reach, and which they are."""

    full: float
    integer: float
    full_kernel: str
    integer_kernel: str

    def floor(self, work: Work, *, integer: bool) -> float:
        """Seconds that `work` takes at least; attention and embedders stay in full precision."""
        return work.linear / (self.integer if integer else self.full) + work.other / self.full


class Shares(NamedTuple):
    """Operations of a call, and which share of them linears are that methods quantize, and attention."""

    all: int
    linear: float
    attention: float

    @property
    def limit(self) -> float:
        """How many times as fast the call can be at most with linears twice as fast."""
        return 1 / (1 - self.linear / 2)


def count(net: nn.Module, call: Callable[[], Any], quantizable: Callable[[str], bool]) -> Work:
    """Counts the operations of one call, which uses the full-precision `net`."""
    linear, counter = _counted(net, call, quantizable)
    return Work(linear, counter.get_total_flops() - linear)


def shares(net: nn.Module, call: Callable[[], Any], quantizable: Callable[[str], bool]) -> Shares:
    """The shares in one call, which may be on the meta device."""
    linear, counter = _counted(net, call, quantizable)
    total, by_operation = counter.get_total_flops(), counter.get_flop_counts()["Global"]
    attention = sum(by_operation.get(operation, 0) for operation in ATTENTION)
    return Shares(total, linear / total, attention / total)


def _counted(
    net: nn.Module, call: Callable[[], Any], quantizable: Callable[[str], bool]
) -> tuple[int, FlopCounterMode]:
    """Operations of the linears, and the counter of all."""
    linear = 0

    def add(module: nn.Linear, args: tuple) -> None:
        nonlocal linear
        linear += 2 * args[0].numel() * module.out_features

    hooks = [module.register_forward_pre_hook(add) for module in receiving_modules(net, quantizable).values()]
    try:
        # torch does not count the operations of its CPU kernel for attention, so attention is composed of products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return linear, counter
