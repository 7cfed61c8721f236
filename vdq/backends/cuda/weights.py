"""Where a layer keeps the integer weights of its time ranges: all on the device, or two sets there and the rest in host
memory.

Both are modules made of all sets, with two buffers that follow the model: `table` int8 [sets, out, in], and `slots`
int32 [steps], which set of the table each step takes. `ready` is called before the table is used.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from vdq.backends.integer import signed_weight
from vdq.errors import UserError
from vdq.quant.linear import LayerSpec
from vdq.quant.weight_sets import Shared


class KeptSets(nn.Module):
    """All sets on the device: nothing is done at a switch, and a captured graph follows the clock."""

    table: Tensor
    slots: Tensor

    def __init__(self, layer: LayerSpec, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.to(layer.weight.device), persistent=False)
        self.register_buffer("slots", layer.quant.weight.steps.int(), persistent=False)

    def ready(self) -> None:
        pass

    @property
    def nbytes(self) -> int:
        return self.table.nbytes


class StreamedSets(nn.Module):
    """All sets in host memory, pinned if the layer is on a GPU, and two on the device: the one in use and the next.

    At the first call in a range, the copy of the following one starts on a side stream, beside the computation of a
    whole step; the range after the last is the first, of the next batch. Any other order is right too, and waits. The
    host decides, by `clock.step`: a captured graph would keep its range, so capturing raises UserError, and
    torch.compile breaks its graph here.
    """

    table: Tensor
    slots: Tensor

    def __init__(self, layer: LayerSpec, table: Tensor) -> None:
        super().__init__()
        self.fqn, self.clock = layer.fqn, layer.clock
        self.ranges: list[int] = layer.quant.weight.steps.tolist()
        self.stored = Shared(_pinned(table.cpu(), layer.weight.device))
        self.register_buffer("table", layer.weight.new_empty(2, *layer.weight.shape, dtype=torch.int8), False)
        self.register_buffer("slots", torch.zeros_like(layer.quant.weight.steps, dtype=torch.int32), False)
        self._forget()

    @torch.compiler.disable
    def ready(self) -> None:
        wanted = self.ranges[self.clock.step]
        if self.table.is_cuda and torch.cuda.is_current_stream_capturing():
            raise UserError(f"layer {self.fqn} streams its weights and cannot be captured; set weight_sets=keep")
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


def integer_weights(layer: LayerSpec, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of all ranges: w int8 [ranges, out, in] on `device`; sum_i (w_i + offset) and offset int32 [ranges,
    out].
    """
    table = torch.empty(layer.quant.weight.num_sets, *layer.weight.shape, dtype=torch.int8, device=device)
    totals, offsets = [], []
    for range_, codes in enumerate(table):  # not a stack, which holds everything twice
        w, offset = signed_weight(layer.weight, layer.quant, range_)
        offset = torch.zeros_like(w[:, 0]) if offset is None else offset
        codes.copy_(w)
        totals.append(w.sum(1, dtype=torch.int32) + w.shape[1] * offset.int())
        offsets.append(offset.int())
    return table, torch.stack(totals), torch.stack(offsets)


def _pinned(stored: Tensor, device: torch.device) -> Tensor:
    return stored.pin_memory() if device.type == "cuda" and not stored.is_pinned() else stored


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
