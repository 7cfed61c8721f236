"""What the user wants to stay in full precision: some layers at all steps, or all layers at some steps."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.errors import UserError

NEAREST = 3  # names in a message
OTHERWISE = "one must be quantized; quant=fp16 quantizes none"


@dataclass(frozen=True)
class Keep:
    """layers: patterns of fnmatch, of the names of layers. steps: of the N steps, negative ones count from the end."""

    layers: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.layers or self.steps)

    def of_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps in 0..N-1, in order. Raises UserError for one outside, one that is named twice, and for all."""
        found: set[int] = set()
        for step in self.steps:
            if not -num_steps <= step < num_steps:
                raise UserError(
                    f"quant.keep_steps has {step}, must be in 0..{num_steps - 1}, or from -{num_steps} to -1 counted "
                    "from the end"
                )
            if step % num_steps in found:
                raise UserError(f"quant.keep_steps={list(self.steps)} names step {step % num_steps} twice")
            found.add(step % num_steps)
        if len(found) == num_steps:
            raise UserError(f"quant.keep_steps keeps all {num_steps} steps, {OTHERWISE}")
        return tuple(sorted(found))

    def of_layers(self, fqns: Iterable[str]) -> dict[str, str]:
        """The kept ones of these layers, which can be quantized, each with the first pattern that it matches. Raises
        UserError for a pattern that matches none of them, and when all are kept.
        """
        fqns = list(fqns)
        kept: dict[str, str] = {}
        for pattern in self.layers:
            matched = [fqn for fqn in fqns if fnmatchcase(fqn, pattern)]
            if not matched:
                nearest = difflib.get_close_matches(pattern, fqns, NEAREST, cutoff=0)
                raise UserError(
                    f"quant.keep: {pattern} matches none of the {len(fqns)} layers that can be quantized; the nearest "
                    f"are {', '.join(nearest)}"
                )
            kept = dict.fromkeys(matched, pattern) | kept
        if kept and len(kept) == len(fqns):
            raise UserError(f"quant.keep={list(self.layers)} keeps all {len(fqns)} layers, {OTHERWISE}")
        return kept


NOTHING = Keep()


class KeptSteps(nn.Module):
    """A quantized linear module that is the original one at some steps: the same weight, the input as it comes.

    `plain` and `quantized` take and return the same. The host chooses, by `clock.step`: a traced graph is that of one
    step.
    """

    def __init__(self, plain: nn.Module, quantized: nn.Module, clock: StepClock, steps: Iterable[int]) -> None:
        super().__init__()
        self.plain, self.quantized, self.clock, self.steps = plain, quantized, clock, frozenset(steps)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """x [..., in] -> [..., out], or those of the parts of a fused linear."""
        return self.plain(x) if self.variant else self.quantized(x)

    @property
    def variant(self) -> bool:
        """Whether the step is kept: the module is then another function (vdq.models.reuse)."""
        return self.clock.step in self.steps

    def extra_repr(self) -> str:
        return f"steps={sorted(self.steps)}"


def of_same_weights(linear: nn.Module) -> nn.Module:
    """A copy of a module with the very memory of its tensors, which a cast or move of the copy leaves as it is."""
    memo: dict[int, Tensor] = {}
    for tensor in (*linear.parameters(), *linear.buffers()):
        same = tensor.detach()
        memo[id(tensor)] = nn.Parameter(same, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else same
    return copy.deepcopy(linear, memo)
