"""Where a layer's dequantized weights live: those of all its time ranges, or one that is made when the range changes.

Every class is called without arguments and returns the weight [out, in] of the clock's step in the layer's dtype, with
the same bits. None of them is in the state dict: `vdq.quant.convert.apply` makes them from model and QuantState.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.quant.affine import code_range
from vdq.quant.layer_quant import LayerQuant


class KeptWeights(nn.Module):
    """All Kw sets, quantized once, as a buffer `table` [Kw, out, in]; the only one that a traced graph can select from.

    The step is data: the set is selected inside the graph by `clock.index`, without a host synchronization.
    """

    table: Tensor
    weight_range: Tensor

    def __init__(self, weight: Tensor, quant: LayerQuant, clock: StepClock) -> None:
        super().__init__()
        self.clock = clock
        self.register_buffer("table", weight.new_empty(quant.weight.num_sets, *weight.shape), persistent=False)
        for range_, row in enumerate(self.table):
            row.copy_(quant.dequantized_weight(weight, range_))
        self.register_buffer("weight_range", quant.weight.steps.clone(), persistent=False)

    def forward(self) -> Tensor:
        if len(self.table) == 1:
            return self.table[0]
        return self.table.index_select(0, self.weight_range.index_select(0, self.clock.index))[0]


@dataclass(frozen=True, eq=False)
class Shared:
    """A tensor that is only read, so that deep copies of its owner need no copy of it."""

    tensor: Tensor

    def __deepcopy__(self, memo: dict) -> "Shared":
        return self


class SwitchedWeights(nn.Module):
    """Base of the two that hold one set: a call in another range replaces it, so once per step at most.

    The wanted range is known on the host (`clock.step`), so a traced graph would keep the range of its trace. Copies
    and pickles leave the set out; it is made again, as after a move or cast.
    """

    def __init__(self, weight: Tensor, stored: Tensor, quant: LayerQuant, clock: StepClock) -> None:
        super().__init__()
        self.stored, self.quant, self.clock = Shared(self.placed(stored, weight.device)), quant, clock
        self.ranges: list[int] = quant.weight.steps.tolist()
        # All casts, not the last: a weight that has been in fp16 stays rounded, as nn.Module's own tensors do.
        self.dtypes = (weight.dtype,)
        self.current: tuple[int, Tensor] | None = None

    def forward(self) -> Tensor:
        wanted = self.ranges[self.clock.step]
        if self.current is None or self.current[0] != wanted:
            self.current = None  # its memory is free for the next
            self.current = (wanted, self._make(wanted))
        return self.current[1]

    def dequantized(self, range_: int) -> Tensor:
        """[out, in] fp32 on the layer's device."""
        raise NotImplementedError

    def placed(self, stored: Tensor, device: torch.device) -> Tensor:
        """`stored` where a layer on `device` wants it."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return self.quant.weight.steps.device

    # The set outlives the call: made in inference mode it would be useless outside of it.
    @torch.inference_mode(False)
    def _make(self, range_: int) -> Tensor:
        weight = self.dequantized(range_)
        for dtype in self.dtypes:
            weight = weight.to(dtype)
        return weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SwitchedWeights":
        super()._apply(fn, recurse)
        probe = fn(torch.empty(0, dtype=self.dtypes[-1], device=self.device))
        if probe.dtype != self.dtypes[-1]:
            self.dtypes += (probe.dtype,)
        self.quant = self.quant.to(probe.device)
        self.stored = Shared(self.placed(self.stored.tensor, probe.device))
        self.current = None
        return self

    def __getstate__(self) -> dict:
        return self.__dict__ | {"current": None}


class PackedWeights(SwitchedWeights):
    """Codes of all sets in host memory, pinned for a layer on a CUDA device; a switch copies those of one range."""

    def __init__(self, weight: Tensor, quant: LayerQuant, clock: StepClock) -> None:
        first, _ = code_range(quant.weight.bits, quant.weight.symmetric)
        for range_ in range(quant.weight.num_sets):  # not a stack, which holds everything twice
            packed = pack(quant.weight_codes(weight, range_) - first, quant.weight.bits)
            if range_ == 0:
                stored = packed.new_empty(quant.weight.num_sets, *packed.shape, device="cpu")
            stored[range_] = packed
        super().__init__(weight, stored, quant, clock)
        self.first, self.in_features = first, weight.shape[1]

    def dequantized(self, range_: int) -> Tensor:
        packed = self.stored.tensor[range_].to(self.device, non_blocking=True)
        return self.quant.weight.dequantized(unpack(packed, self.in_features).float() + self.first, range_)

    def placed(self, stored: Tensor, device: torch.device) -> Tensor:
        return stored.pin_memory() if device.type == "cuda" and not stored.is_pinned() else stored


class RequantizedWeights(SwitchedWeights):
    """The original weight, by reference and in its own precision; a switch smooths and quantizes it for one range."""

    def __init__(self, weight: Tensor, quant: LayerQuant, clock: StepClock) -> None:
        super().__init__(weight, weight.detach(), quant, clock)

    def dequantized(self, range_: int) -> Tensor:
        return self.quant.dequantized_weight(self.stored.tensor, range_)

    def placed(self, stored: Tensor, device: torch.device) -> Tensor:
        return stored.to(device)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes 0..2^bits-1 [out, in] in few bytes: int32 above 8 bits, else uint8. At 4 bits or fewer, if `in` is even,
    columns j (low half) and in/2 + j share the byte of column j: [out, in/2], read back without a stride.
    """
    if bits > 8:
        return codes.int()
    codes = codes.byte()
    if bits > 4 or codes.shape[1] % 2:
        return codes
    low, high = codes.chunk(2, 1)
    return low | high << 4


def unpack(packed: Tensor, in_features: int) -> Tensor:
    """Undoes `pack`: integers [out, in_features]."""
    if packed.shape[1] == in_features:
        return packed
    return torch.cat([packed & 15, packed >> 4], 1)
