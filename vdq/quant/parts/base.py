"""The contract of a part: a piece of a quantized layer that owns its numbers, its arithmetic and its line on a card."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from statistics import mean
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.errors import UserError
from vdq.quant.bit_switch import BitSwitch
from vdq.quant.weight_codes import pack_codes

KINDS: dict[str, type[Part]] = {}
STEP_TABLES = "tables of steps"
PER_BRANCH = "per_branch"  # a feature of activation quantizers


class Runtime(NamedTuple):
    """What layers of one model share while they run: `rows` says how the rows of a batch lie in a layer's input (a
    BatchLayout), `switch` how many bits each video has, where parts are of such a kind.
    """

    clock: StepClock
    rows: Any
    switch: BitSwitch | None = None


class Cost(NamedTuple):
    """What a part computes beside the product of integers, in a call on some rows: multiply-adds in floating point, and
    additions of a rotation.
    """

    float_macs: float = 0
    rotation_adds: float = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """A piece of a quantized layer. To make a new one, subclass one of the five slots below (InputTransform,
    WeightQuantizer, ActQuantizer, Branch, OutputTransform) as a frozen dataclass that names its `kind`: it is then
    stored, loaded and simulated, and refused by name where a backend does not list it.

    Fields are tensors, or what JSON holds. kind: its name in files, cards and refusals, registered when the class is
    made. tables: fields with one row for each of the part's time ranges; `steps` long [N] is the row of every step, and
    by_step names all fields with one entry a step. In a layer with parameters for each branch of guidance
    (ActQuantizer.per_branch) every part counts the two calls of a step as two steps.
    label: what its tensors are, in lists of sizes; size_field: the field of ModelSize they count to. on_host: fields
    that stay on the CPU. of_input: whether its tensors follow from the layer's input alone, so that layers of one input
    may share them. Raises ValueError for a step without a row; defining a class raises TypeError when another one has
    its kind.
    """

    kind: ClassVar[str]
    label: ClassVar[str] = "other tables"
    size_field: ClassVar[str] = "tables"
    tables: ClassVar[tuple[str, ...]] = ()
    by_step: ClassVar[tuple[str, ...]] = ("steps",)
    on_host: ClassVar[tuple[str, ...]] = ()
    of_input: ClassVar[bool] = False

    steps: Tensor | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            other = KINDS.setdefault(cls.kind, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(f"kind={cls.kind} of {cls.__name__} is taken by {other.__module__}.{other.__name__}")
            KINDS[cls.kind] = cls  # a module that is loaded again defines its parts anew

    def __post_init__(self) -> None:
        if self.steps is None or self.steps.is_meta:
            return
        first, last = int(self.steps.min()), int(self.steps.max())
        for name in self.tables:
            rows = len(getattr(self, name))
            if not 0 <= first <= last < rows:
                raise ValueError(f"{self.kind}.{name} has {rows} rows, must have one for each of {first}..{last}")

    def __deepcopy__(self, memo: dict) -> Self:
        return self  # only read

    # Storage ----------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The part's tensors by field."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def description(self) -> dict[str, Any]:
        """The part's kind and every field that is no tensor, as JSON."""
        tensors = self.tensors()
        return {"kind": self.kind} | {f.name: getattr(self, f.name) for f in fields(self) if f.name not in tensors}

    @staticmethod
    def restored(description: dict[str, Any], tensors: dict[str, Tensor]) -> Part:
        """The part that has this `description` and these `tensors`. Raises UserError for a kind that no imported module
        defines.
        """
        facts = dict(description)
        if (kind := facts.pop("kind")) not in KINDS:
            raise UserError(f"kind={kind} is no known part of a layer, import what defines it; known: {known_kinds()}")
        return KINDS[kind](**facts | tensors)

    def to(self, move: Callable[[Tensor], Tensor]) -> Self:
        """The part with its tensors moved by `move`."""
        return replace(self, **{name: move(t) for name, t in self.tensors().items() if name not in self.on_host})

    def label_of(self, name: str) -> str:
        """`label` of one of its tensors."""
        return STEP_TABLES if name in self.by_step else self.label

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        """Shapes that its tensors must have in a layer of these widths, as far as the widths decide them."""
        return {}

    # Time -------------------------------------------------------------------------------------------------------------

    def at(self, name: str, step: Tensor) -> Tensor:
        """The row of a table at a step, a 0-d long tensor such as the clock's index: no host synchronization, and a
        traced graph follows the clock.
        """
        return getattr(self, name).index_select(0, self.steps.index_select(0, step))[0]

    def of_steps(self, name: str) -> Tensor:
        """The rows of a table at all steps, [N, ...]."""
        return getattr(self, name)[self.steps]

    def picked(self, pick: Callable[[Tensor], Tensor]) -> Self:
        """The part for other steps: `pick` takes those that they stand for, [N, ...] -> [M, ...]."""
        found = {name: getattr(self, name) for name in self.by_step}
        return replace(self, **{name: pick(entries) for name, entries in found.items() if entries is not None})

    def variants(self) -> Tensor | None:
        """long [N]: steps have the same number when all that the part has for them is equal in value. None: all."""
        rows = [self.of_steps(name).reshape(len(self.steps), -1) for name in self.tables]
        return torch.cat(rows, 1).unique(dim=0, return_inverse=True)[1] if rows else None

    # Words and numbers ------------------------------------------------------------------------------------------------

    @property
    def features(self) -> frozenset[str]:
        """What a backend has to know to run it: its kind, and what of it is optional and used."""
        return frozenset({self.kind})

    @property
    def line(self) -> str:
        """What a card says of it, in words."""
        return self.kind.replace("_", " ")

    def cost(self, rows: int, out_features: int, in_features: int) -> Cost:
        """What a call on so many rows costs."""
        return Cost()


def known_kinds() -> str:
    return ", ".join(sorted(KINDS))


class PartModule(nn.Module):
    """Runs a part, `part(x, step)`, at the step of the clock. Its numbers follow the model to a device and keep their
    dtypes, whatever that of the model becomes.
    """

    def __init__(self, part: Part, clock: StepClock) -> None:
        super().__init__()
        self.part, self.clock = part, clock

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, self.clock.index)

    def extra_repr(self) -> str:
        return self.part.line

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PartModule:
        super()._apply(fn, recurse)
        device = self.clock.index.device
        self.part = self.part.to(lambda tensor: tensor.to(device))
        return self


class ExactBuffers(nn.Module):
    """Base of modules whose buffers named in `exact` stay fp32 through dtype changes such as `.half()`."""

    exact: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactBuffers:
        kept = {name: self._buffers[name] for name in self.exact}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self


class InputTransform(Part):
    """Changes a layer's input before it is quantized, and the weight so that their product stays the same.

    `part(x, step)` is x' fp32 of x fp32 [..., in].
    """

    changes_weight: ClassVar[bool] = True

    @property
    def num_sets(self) -> int:
        """Weights that it makes of one, over the steps."""
        return 1

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        raise NotImplementedError

    def module(self, clock: StepClock) -> nn.Module | None:
        """What runs it; None where nothing has to run."""
        return PartModule(self, clock)

    def weight(self, weight: Tensor, set_: int) -> Tensor:
        """W' fp32 of W fp32 [out, in], in one weight set."""
        raise NotImplementedError

    def restored_weight(self, weight: Tensor, set_: int) -> Tensor:
        """Undoes `weight`."""
        raise NotImplementedError

    def extremes(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor] | None:
        """The range of every step and channel afterwards, two [N, in]; None where the range before does not tell it."""
        return None

    def rotated(self, block: int) -> InputTransform:
        """The transform of an input that arrives rotated by such blocks. Raises ValueError where there is none."""
        raise ValueError(f"{self.kind} comes before the rotation, which a folded layer leaves to the one before")


@dataclass(frozen=True, eq=False, kw_only=True)
class UniformGrids(Part):
    """Grids of equal steps, one for each of the part's time ranges: scale and zero_point, fp32 [K, ...]."""

    size_field = "scales"
    tables = ("scale", "zero_point")

    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightQuantizer(Part):
    """Integer codes of the weight W' [out, in] in each of its sets; `steps` says which set serves a step.

    bits: of a code. symmetric: whether codes reach as far below zero as above (vdq.quant.affine.code_range).
    """

    bits: int
    symmetric: bool = False

    @property
    def num_sets(self) -> int:
        """Sets of codes, over the steps."""
        raise NotImplementedError

    def codes_of(self, weight: Tensor, set_: int, transform: Callable[[Tensor], Tensor]) -> Tensor:
        """Codes of one set, integers held in fp32 [out, in], of the layer's own weight: `transform` makes W' of it."""
        raise NotImplementedError

    def dequantized(self, codes: Tensor, set_: int) -> Tensor:
        """What the codes of one set stand for, fp32 [out, in]."""
        raise NotImplementedError

    def packed(self, weight: Tensor, transform: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Codes of all sets, uint8 [Kw, bytes] on the CPU: one set at a time is worked on."""
        sets = (self.codes_of(weight, k, lambda w, k=k: transform(w, k)) for k in range(self.num_sets))
        return pack_codes(sets, bits=self.bits, symmetric=self.symmetric)

    def stored(self, codes: Tensor) -> WeightQuantizer:
        """The quantizer with packed codes that are kept, as `packed` makes them: uint8 [Kw, bytes]."""
        raise NotImplementedError

    def variants(self) -> Tensor:
        """Numbers by its tables, or without one by its sets."""
        found = super().variants()
        return self.steps if found is None else found


@dataclass(frozen=True, eq=False, kw_only=True)
class ActQuantizer(Part):
    """Quantizes x'. `part(x, step)` is x' quantized and dequantized, fp32 of x' fp32 [..., in].

    bits: of its codes, the most where steps differ. per_branch: whether each branch of guidance has parameters of its
    own; the layer then reads the clock of calls (StepClock.calls). static: whether all is decided before sampling.
    needs_rows: whether it has to know how the rows of a batch lie in its input.
    """

    static: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = False
    bits: int
    per_branch: bool = False

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        raise NotImplementedError

    def module(self, runtime: Runtime, smoothing: InputTransform | None) -> nn.Module:
        """x fp32 or of the model's dtype -> x' quantized and dequantized, fp32. `smoothing` stands directly before the
        quantizer and is applied here, so that both may be one operation.
        """
        return ActFakeQuant(self, runtime.clock, smoothing)

    @property
    def features(self) -> frozenset[str]:
        return frozenset({self.kind} | ({PER_BRANCH} if self.per_branch else set()))

    @property
    def num_ranges(self) -> int:
        """Time ranges with parameters of their own; 0 where they are measured at run time."""
        return int(self.static)

    @property
    def num_groups(self) -> int:
        """Groups of tokens with parameters of their own; 0 where they are measured at run time."""
        return int(self.static)

    @property
    def bits_of_steps(self) -> list[int] | None:
        """The bits of every step where they differ between steps, else None."""
        return None

    @property
    def mean_bits(self) -> float | None:
        """Bits on average over the steps; None if they are chosen while sampling."""
        return self.bits

    def mean_bits_beside(self, kept_steps: Collection[int]) -> float | None:
        """`mean_bits` over the other steps, those that are quantized."""
        if (bits := self.bits_of_steps) is None:
            return self.mean_bits
        return mean(number for step, number in enumerate(bits) if step not in kept_steps)

    @property
    def switching(self) -> tuple[int, int, float] | None:
        """(low bits, high bits, delta) where they are chosen while sampling (vdq.quant.bit_switch)."""
        return None


class ActFakeQuant(PartModule):
    """An activation quantizer behind its smoothing, if it has one."""

    def __init__(self, part: ActQuantizer, clock: StepClock, smoothing: InputTransform | None) -> None:
        super().__init__(part, clock)
        self.smoothing = None if smoothing is None else smoothing.module(clock)

    def smoothed(self, x: Tensor) -> Tensor:
        """X / s in fp32."""
        return x.float() if self.smoothing is None else self.smoothing(x.float())

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.smoothed(x), self.clock.index)


class Branch(Part):
    """Something in floating point that is added to the product. `part(x, step)` is what is added, of x' [..., in].

    reads_input: whether it depends on x', of which smoothing then has to be done. holds_weight: whether it is a product
    with a part of the weight, which the codes then lack.
    """

    reads_input: ClassVar[bool] = True
    holds_weight: ClassVar[bool] = False

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        raise NotImplementedError

    def module(self, clock: StepClock) -> nn.Module:
        """What runs it."""
        return PartModule(self, clock)

    @property
    def weight(self) -> Tensor:
        """The matrix fp32 [out, in] that it multiplies x' with, if it holds a part of the weight."""
        raise NotImplementedError


class OutputTransform(Part):
    """Changes the output channels of a layer, for a layer behind it that expects them so. Nothing of it runs."""

    def weight(self, weight: Tensor) -> Tensor:
        """The weight [out, in] of a layer with such an output."""
        raise NotImplementedError

    def restored_weight(self, weight: Tensor) -> Tensor:
        """Undoes `weight`."""
        raise NotImplementedError

    def bias(self, bias: Tensor) -> Tensor:
        """The bias [out] of a layer with such an output."""
        raise NotImplementedError
