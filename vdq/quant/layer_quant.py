"""What is decided for one linear layer: the parts that it is composed of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vdq.diffusion.clock import BRANCHES, StepClock
from vdq.quant.parts import (
    ActQuantizer,
    Branch,
    FoldedRotation,
    InputTransform,
    OutputTransform,
    Part,
    Smoothing,
    StoredWeights,
    WeightQuantizer,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerQuant:
    """Quantization of one linear layer y = x W^T + b over N steps.

    The layer computes act(x') What^T + the sum of `branches` + b. x' is x after all `inputs`, in order; What has the
    codes of W after the same, less what branches hold of it. `outputs` change W and b for the layer behind.

    Raises ValueError for two parts of one kind, parts of other step counts, smoothing that does not share the steps of
    the weight, a branch that holds part of a weight whose codes are not stored, and for a transform that cannot stand
    before a folded rotation.
    """

    weight: WeightQuantizer
    act: ActQuantizer
    inputs: tuple[InputTransform, ...] = ()
    branches: tuple[Branch, ...] = ()
    outputs: tuple[OutputTransform, ...] = ()

    def __post_init__(self) -> None:
        kinds = [part.kind for part in self.parts]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"a layer has two parts of one kind: {', '.join(kinds)}")
        for part in self.parts:
            if part.steps is not None and len(part.steps) != self.num_steps:
                raise ValueError(f"{part.kind} has {len(part.steps)} steps, the weight has {self.num_steps}")
        smoothing = self.part(Smoothing.kind)
        if smoothing is not None and not _equal(smoothing.steps, self.weight.steps):
            raise ValueError("smoothing has other steps than the weight, each weight set has factors of its own")
        held = [branch.kind for branch in self.branches if branch.holds_weight]
        if held and not isinstance(self.weight, StoredWeights) and not self.weight.steps.is_meta:
            raise ValueError(f"{held[0]} needs stored codes, those of what it leaves of the weight")
        if self._folded is not None:
            self._arrived_rotated()

    def __deepcopy__(self, memo: dict) -> LayerQuant:
        return self  # only read

    # The parts --------------------------------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.inputs, self.weight, self.act, *self.branches, *self.outputs)

    def part(self, kind: str) -> Part | None:
        """Its part of a kind, or None."""
        return next((part for part in self.parts if part.kind == kind), None)

    @property
    def features(self) -> frozenset[str]:
        """What a backend has to know to run the layer."""
        return frozenset().union(*(part.features for part in self.parts))

    @property
    def per_branch(self) -> bool:
        """Whether each branch of guidance has parameters of its own: all parts then count calls, two a step."""
        return self.act.per_branch

    @property
    def num_steps(self) -> int:
        """N, of calls where `per_branch`."""
        return len(self.weight.steps)

    def clock(self, clock: StepClock) -> StepClock:
        """What the layer reads of a model's clock."""
        return clock.calls if self.per_branch else clock

    @property
    def transforms(self) -> bool:
        """Whether something happens around the layer (`core`)."""
        return bool(self.branches) or any(not isinstance(part, Smoothing) for part in self.inputs)

    # Storage ----------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by ``kind.field``; a tensor that several parts share has several names."""
        return {f"{part.kind}.{name}": t for part in self.parts for name, t in part.tensors().items()}

    def description(self) -> list[dict[str, Any]]:
        """The parts in order, without their tensors, as JSON."""
        return [part.description() for part in self.parts]

    @classmethod
    def restored(cls, description: list[dict[str, Any]], tensors: dict[str, Tensor]) -> LayerQuant:
        """The layer that has this `description` and these `tensors`. Raises ValueError where they do not belong
        together.
        """
        named: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in tensors.items():
            kind, _, name = full_name.partition(".")
            named.setdefault(kind, {})[name] = tensor
        try:
            parts = [Part.restored(facts, named.pop(facts["kind"], {})) for facts in description]
        except TypeError as error:  # a part is made of more tensors or numbers than are there
            raise ValueError(f"a part of the layer is incomplete: {error}") from error
        if named:
            raise ValueError(f"{min(named)} has tensors and is no part of the layer")
        return cls.composed(parts)

    @classmethod
    def composed(cls, parts: Iterable[Part]) -> LayerQuant:
        """The layer of these parts, each in the slot of its type."""
        parts = list(parts)

        def of(slot: type[Part]) -> tuple:
            return tuple(part for part in parts if isinstance(part, slot))

        (weight,), (act,) = of(WeightQuantizer), of(ActQuantizer)
        return cls(weight=weight, act=act, inputs=of(InputTransform), branches=of(Branch), outputs=of(OutputTransform))

    def to(self, device: torch.device | str) -> LayerQuant:
        """The layer on another device, codes where they are; tensors that parts share stay shared."""
        move = _once(lambda tensor: tensor.to(device))
        return LayerQuant.composed(part.to(move) for part in self.parts)

    def picked(self, steps: Sequence[int]) -> LayerQuant:
        """The layer for other steps, each with the parameters of one of these (or both branches of it): M of 0..N-1."""
        calls = len(BRANCHES) if self.per_branch else 1
        chosen = (calls * torch.tensor(steps)[:, None] + torch.arange(calls)).flatten().to(self.weight.steps.device)
        pick = _once(lambda entries: entries.index_select(0, chosen))
        return LayerQuant.composed(part if part.steps is None else part.picked(pick) for part in self.parts)

    # The weight -------------------------------------------------------------------------------------------------------

    def transformed_weight(self, weight: Tensor, set_: int) -> Tensor:
        """W' of one weight set, which the codes are of: weight [out, in] -> fp32."""
        weight = weight.detach().float()
        for output in self.outputs:
            weight = output.weight(weight)
        for transform in self.inputs:
            weight = transform.weight(weight, set_)
        return weight

    def restored_weight(self, weight: Tensor, set_: int) -> Tensor:
        """Undoes `transformed_weight`."""
        for transform in reversed(self.inputs):
            weight = transform.restored_weight(weight, set_)
        for output in reversed(self.outputs):
            weight = output.restored_weight(weight)
        return weight

    def weight_codes(self, weight: Tensor, set_: int) -> Tensor:
        """Codes of one set: weight [out, in] -> [out, in], integers held in fp32."""
        return self.weight.codes_of(weight, set_, lambda w: self.transformed_weight(w, set_))

    def packed_codes(self, weight: Tensor) -> Tensor:
        """Codes of all sets, stored or made from the weight [out, in]: uint8 [Kw, bytes] on the CPU."""
        return self.weight.packed(weight, self.transformed_weight)

    def with_codes(self, weight: Tensor) -> LayerQuant:
        """The layer with its codes stored, so that nothing more is made from the weight [out, in]."""
        return replace(self, weight=self.weight.stored(self.packed_codes(weight)))

    def dequantized_weight(self, weight: Tensor, set_: int) -> Tensor:
        """The weight that multiplies the quantized x' in one set: weight [out, in] -> [out, in] fp32."""
        return self.weight.dequantized(self.weight_codes(weight, set_), set_)

    # What runs --------------------------------------------------------------------------------------------------------

    def unfolded(self, weight: Tensor) -> LayerQuant:
        """The layer without folds, as it gets its input and has to give its output: weight [out, in]."""
        if self._folded is None and not self.outputs:
            return self
        return replace(self.with_codes(weight), inputs=self._arrived_rotated(), outputs=())

    def core(self, weight: Tensor) -> LayerQuant:
        """What is left for a backend when transforms and branches happen around it: the two quantizers, and smoothing
        that stands directly before them and nothing else reads: weight [out, in].
        """
        inside, outside = self._smoothing_inside(), self.outside
        core = self.with_codes(weight) if any(transform.changes_weight for transform in outside) else self
        return replace(core, inputs=inside, branches=())

    @property
    def outside(self) -> tuple[InputTransform, ...]:
        """The transforms that happen around `core`."""
        return self.inputs[: len(self.inputs) - len(self._smoothing_inside())]

    def transform_input(self, x: Tensor, step: Tensor) -> Tensor:
        """x' of a step, a 0-d long tensor: x [..., in], which has not been rotated before -> [..., in] fp32."""
        x = x.float()
        for transform in self.inputs:
            x = transform(x, step)
        return x

    def variants(self) -> list[int]:
        """One number a step; steps have the same number when all their parameters are equal in value, whatever their
        ranges: the layer is then the same function of its input. A layer whose input does not change over time is
        calibrated to equal ranges.
        """
        columns = [found for part in self.parts if (found := part.variants()) is not None]
        return torch.stack(columns, 1).unique(dim=0, return_inverse=True)[1].tolist()

    @property
    def _folded(self) -> FoldedRotation | None:
        return self.part(FoldedRotation.kind)

    def _arrived_rotated(self) -> tuple[InputTransform, ...]:
        """The transforms that are left for an input that arrives rotated."""
        if self._folded is None:
            return self.inputs
        before = self.inputs.index(self._folded)
        rotated = (transform.rotated(self._folded.block) for transform in self.inputs[:before])
        return (*rotated, *self.inputs[before + 1 :])

    def _smoothing_inside(self) -> tuple[InputTransform, ...]:
        alone = not any(branch.reads_input for branch in self.branches)
        return self.inputs[-1:] if alone and self.inputs and isinstance(self.inputs[-1], Smoothing) else ()


def _once(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`change`, which gives the same tensor for the same tensor, so that what parts share stays shared."""
    changed: dict[int, Tensor] = {}

    def changed_once(tensor: Tensor) -> Tensor:
        if id(tensor) not in changed:
            changed[id(tensor)] = change(tensor)
        return changed[id(tensor)]

    return changed_once


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or one.is_meta or torch.equal(one, other)
