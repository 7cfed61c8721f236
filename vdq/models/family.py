"""What is particular to the denoisers of one family, as data. Nothing here knows of quantization, or needs weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn


class AttentionGroup(NamedTuple):
    """The linears around one attention whose values keep their channels: those `before`, whose outputs it mixes, and
    the one `after`, by fqn. head_dim: channels of a head, within which outputs may be rotated.
    """

    before: tuple[str, ...]
    after: str
    head_dim: int


class TokenOrder(NamedTuple):
    """How the tokens of a video, of `frames` times `positions`, reach a linear: all positions of one frame after
    another, or `by_position` all frames of one position after another.
    """

    frames: int
    positions: int
    by_position: bool = False


class TimestepTable(NamedTuple):
    """What depends on the step alone, so that a fixed schedule needs it once. numbers: of the table for a schedule.
    reused_numbers: of what sampling keeps of it for one row of a batch. layers: those that no call needs once the table
    is there, by fqn; weights: their parameters, biases included.
    """

    numbers: int
    reused_numbers: int
    layers: list[str]
    weights: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """Facts of a family, whose linears are named by fqn as projections are: parts of a fused linear one by one.

    name: for messages. denoisers: import paths of their classes, such as vdq.models.stdit.STDiT. quantizable: patterns
    (of fnmatch) of the linears that may be quantized; the others stay in full precision. packed: patterns of the linear
    modules that get the tokens of all prompts of a batch in one row. calls_a_step: 1 where guidance is one call of the
    denoiser, 2 where the conditional and then the unconditional branch have one each, None where the number of calls
    and their branches depend on more than the family, or nobody has written them down.

    Of a denoiser, whose weights are not read: attention_groups, for outputs that are handed on rotated. token_orders of
    the linears that get tokens of videos. temporal_features: inputs of the linears that see nothing but the timestep,
    timesteps [N] -> fp32 [N, C] of each. timestep_table: see TimestepTable, of a number of steps. example_inputs: the
    arguments of a call for one video, on the device of the weights. Each is None where nobody has written it down.
    """

    name: str
    denoisers: tuple[str, ...]
    quantizable: tuple[str, ...]
    packed: tuple[str, ...] = ()
    calls_a_step: int | None = 1
    attention_groups: Callable[[nn.Module], list[AttentionGroup]] | None = None
    token_orders: Callable[[nn.Module], dict[str, TokenOrder]] | None = None
    temporal_features: Callable[[nn.Module, Tensor], dict[str, Tensor]] | None = None
    timestep_table: Callable[[nn.Module, int], TimestepTable] | None = None
    example_inputs: Callable[[nn.Module], tuple[Tensor, ...]] | None = None

    def is_quantizable(self, fqn: str) -> bool:
        """Whether the linear of that name may be quantized."""
        return _matches(fqn, self.quantizable)

    def is_packed(self, fqn: str) -> bool:
        """Whether the linear module of that name gets packed tokens."""
        return _matches(fqn, self.packed)


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Makes a family known to `family_of`; one that was registered before for a class is replaced. Raises ValueError
    for a denoiser that is no import path: classes of one name may be of several packages.
    """
    if bare := [path for path in family.denoisers if "." not in path]:
        raise ValueError(f"family {family.name}: denoisers must be import paths, such as package.{bare[0]}")
    _FAMILIES.update(dict.fromkeys(family.denoisers, family))
    return family


def family_of(denoiser: nn.Module) -> Family | None:
    """The family of a denoiser by its class or one that it extends; None if it has none."""
    import vdq.models.pipelines.families  # (they register; others are registered where their models are)
    import vdq.models.stdit_family  # noqa: F401

    paths = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(denoiser).__mro__)
    return next((_FAMILIES[path] for path in paths if path in _FAMILIES), None)


def _matches(fqn: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(fqn, pattern) for pattern in patterns)
