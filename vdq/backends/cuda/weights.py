"""Where a layer keeps the integer weights of its time ranges: all on the device, two sets there and the rest in host
memory, or one set that is made of the original weight.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from vdq.backends.integer import BITS, signed_weight
from vdq.errors import UserError
from vdq.quant.linear import LayerSpec
from vdq.quant.weight_sets import Shared


class WeightSets(nn.Module):
    """Buffers that follow the model: `table` int8 [sets, out, in] of what is on the device, and `slots` int32 [steps],
    which set of the table each step takes; of all ranges `total`, sum_i (w_i + offset), and `offset`, int32 [ranges,
    out], None where it is zero. `ready` is called before they are used.
    """

    table: Tensor
    slots: Tensor
    total: Tensor
    offset: Tensor | None

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.fqn, self.clock = layer.fqn, layer.clock
        self.ranges: list[int] = layer.quant.weight.steps.tolist()

    def hold(self, table: Tensor, slots: Tensor, total: Tensor, offset: Tensor | None) -> None:
        """Sets the buffers."""
        for name, values in {"table": table, "slots": slots, "total": total, "offset": offset}.items():
            self.register_buffer(name, values, persistent=False)

    def ready(self) -> None:
        """Nothing is to be done where all sets are there."""

    def check_not_captured(self) -> None:
        """Raises UserError where the host's decisions would become part of a graph."""
        if self.table.is_cuda and torch.cuda.is_current_stream_capturing():
            raise UserError(f"layer {self.fqn} changes its weights and cannot be captured; set weight_sets=keep")

    @property
    def nbytes(self) -> int:
        """Of the integer weights that are held."""
        return self.table.nbytes


class KeptSets(WeightSets):
    """All sets on the device: nothing is done at a switch, and a captured graph follows the clock."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        table, total, offset = integer_weights(layer, layer.weight.device)
        self.hold(table, layer.quant.weight.steps.int(), total, offset)


class StreamedSets(WeightSets):
    """All sets in host memory, pinned if the layer is on a GPU, and two on the device: the one in use and the next.

    At the first call in a range, the copy of the following one starts on a side stream, beside the computation of a
    whole step; the range after the last is the first, of the next batch. Any other order is right too, and waits. The
    host decides, by `clock.step`: a captured graph would keep its range, so capturing raises UserError, and
    torch.compile breaks its graph here.
    """

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        sets, total, offset = integer_weights(layer, torch.device("cpu"))
        self.stored = Shared(_pinned(sets, layer.weight.device))
        table = layer.weight.new_empty(2, *layer.weight.shape, dtype=torch.int8)
        self.hold(table, _no_slots(layer), total, offset)
        self._forget()

    @torch.compiler.disable
    def ready(self) -> None:
        wanted = self.ranges[self.clock.step]
        self.check_not_captured()
        if self.held[self.current] == wanted:
            return
        other = 1 - self.current
        if self.held[other] != wanted:
            self._load(wanted, other)
        if self.table.is_cuda:
            torch.cuda.current_stream(self.table.device).wait_event(self.arrived[other])
        self.slots.fill_(other)
        self.current = other
        self._load((wanted + 1) % len(self.stored.tensor), 1 - other)

    def _load(self, range_: int, slot: int) -> None:
        """Replaces a set once all that was asked of the device so far, which may read it, is done."""
        self.held[slot] = range_
        if not self.table.is_cuda:
            self.table[slot].copy_(self.stored.tensor[range_])
            return
        side = _side_stream(self.table.device)
        side.wait_stream(torch.cuda.current_stream(self.table.device))
        with torch.cuda.stream(side):
            self.table[slot].copy_(self.stored.tensor[range_], non_blocking=True)
            self.arrived[slot] = side.record_event()

    def _forget(self) -> None:
        self.held: list[int | None] = [None, None]
        self.current = 0
        self.arrived: list[torch.cuda.Event | None] = [None, None]

    @property
    def nbytes(self) -> int:
        return self.stored.tensor.nbytes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StreamedSets":
        super()._apply(fn, recurse)
        self.stored = Shared(_pinned(self.stored.tensor, self.table.device))
        self._forget()
        return self

    def __getstate__(self) -> dict:
        """Copies and pickles load their sets again: events belong to one process."""
        return self.__dict__ | {"held": [None, None], "current": 0, "arrived": [None, None]}


class RequantizedSets(WeightSets):
    """The original weight, by reference and in its own precision, and one set, made of it on the device when its range
    comes. The host decides, as for StreamedSets.
    """

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        self.source, self.quant, self.held = Shared(layer.weight.detach()), layer.quant, None
        table = layer.weight.new_empty(1, *layer.weight.shape, dtype=torch.int8)
        total = torch.zeros(layer.quant.weight.num_sets, len(layer.weight), dtype=torch.int32, device=table.device)
        whole = layer.quant.weight.symmetric or layer.quant.weight.bits < BITS  # w holds all of it (signed_weight)
        self.hold(table, _no_slots(layer), total, None if whole else torch.zeros_like(total))

    @torch.compiler.disable
    def ready(self) -> None:
        wanted = self.ranges[self.clock.step]
        self.check_not_captured()
        if self.held == wanted:
            return
        w, offset = signed_weight(self.source.tensor, self.quant, wanted)
        self.table[0].copy_(w)
        self.total[wanted] = _total(w, offset)
        if offset is not None:
            self.offset[wanted] = offset.int()
        self.held = wanted

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RequantizedSets":
        super()._apply(fn, recurse)
        device = self.table.device
        self.source, self.quant = Shared(self.source.tensor.to(device)), self.quant.to(device)
        return self


def integer_weights(layer: LayerSpec, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """The weights of all ranges: w int8 [ranges, out, in] on `device`, and the total and offset of WeightSets."""
    table = torch.empty(layer.quant.weight.num_sets, *layer.weight.shape, dtype=torch.int8, device=device)
    totals, offsets = [], []
    for range_, codes in enumerate(table):  # not a stack, which holds everything twice
        w, offset = signed_weight(layer.weight, layer.quant, range_)
        codes.copy_(w)
        totals.append(_total(w, offset))
        offsets.append(torch.zeros_like(totals[-1]) if offset is None else offset.int())
    offset = torch.stack(offsets)
    return table, torch.stack(totals), offset if offset.any() else None


def _total(w: Tensor, offset: Tensor | None) -> Tensor:
    """[out]"""
    total = w.sum(1, dtype=torch.int32)
    return total if offset is None else total + w.shape[1] * offset.int()


def _no_slots(layer: LayerSpec) -> Tensor:
    """All steps take the first set of the table."""
    return torch.zeros_like(layer.quant.weight.steps, dtype=torch.int32)


def _pinned(stored: Tensor, device: torch.device) -> Tensor:
    return stored.pin_memory() if device.type == "cuda" and not stored.is_pinned() else stored


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
