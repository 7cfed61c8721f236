"""How many operations a call needs, and how fast it could be: the arithmetic floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vdq.quant.layers import receiving_modules


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


def count(net: nn.Module, call: Callable[[], Any], quantizable: Callable[[str], bool]) -> Work:
    """Counts the operations of one call, which uses the full-precision `net`."""
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
    return Work(linear, counter.get_total_flops() - linear)
