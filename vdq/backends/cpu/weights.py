"""Where int8_cpu has the weights of a layer's time ranges: all of them, those of now, or of now and the next range."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vdq.backends.cpu.matmul import Matmul
from vdq.backends.integer import signed_weight
from vdq.quant.layer_quant import LayerQuant


class WeightSet(NamedTuple):
    """Weights of one range, qw - zw = w + offset: w as signed bytes inside `matmul`; scale, offset and sums of w fp32
    [out]. offset is None where w alone holds the difference: symmetric weights, and any of at most 7 bits.
    """

    matmul: Matmul
    scale: Tensor
    offset: Tensor | None
    sums: Tensor


def weight_set(weight: Tensor, quant: LayerQuant, range_: int, kernel: type[Matmul]) -> WeightSet:
    """The codes of one range, packed."""
    w, offset = signed_weight(weight, quant, range_)
    scale = quant.weight.qparams(range_).scale[:, 0].contiguous()
    return WeightSet(kernel(w), scale, offset, w.sum(1).float())


class KeptSets:
    """All sets, made before sampling: `sets[range]`."""

    def __init__(self, weight: Tensor, quant: LayerQuant, kernel: type[Matmul]) -> None:
        self.sets = [weight_set(weight, quant, range_, kernel) for range_ in range(quant.weight.num_sets)]

    def __getitem__(self, range_: int) -> WeightSet:
        return self.sets[range_]

    @property
    def nbytes(self) -> int:
        """What the codes take in memory."""
        return sum(weights.matmul.nbytes for weights in self.sets)


class RequantizedSets:
    """The set in use, made from the original weight when its range comes.

    The weight is held by reference, so it must not be changed in place. Copies and pickles leave the set out.
    """

    sets = 1  # in memory

    def __init__(self, weight: Tensor, quant: LayerQuant, kernel: type[Matmul]) -> None:
        self.arguments = (weight.detach(), quant, kernel)
        self.now: tuple[int, WeightSet] | None = None

    def __getitem__(self, range_: int) -> WeightSet:
        if self.now is None or self.now[0] != range_:
            self.now = None  # its memory is free
            self.now = (range_, self._get(range_))
        return self.now[1]

    def _get(self, range_: int) -> WeightSet:
        return self._make(range_)

    def _make(self, range_: int) -> WeightSet:
        weight, quant, kernel = self.arguments
        with torch.inference_mode(False):  # a set outlives the call that makes it
            return weight_set(weight, quant, range_, kernel)

    @property
    def nbytes(self) -> int:
        """What the codes take in memory, a byte each."""
        return self.sets * self.arguments[0].numel()

    def __deepcopy__(self, memo: dict) -> RequantizedSets:
        return type(self)(*self.arguments)

    def __reduce__(self) -> tuple:
        return type(self), self.arguments


class PrefetchedSets(RequantizedSets):
    """With that of the next range, which one thread in the background makes. After the last range comes the first, for
    the next videos.
    """

    sets = 2

    def __init__(self, weight: Tensor, quant: LayerQuant, kernel: type[Matmul]) -> None:
        super().__init__(weight, quant, kernel)
        self.next: tuple[int, Future[WeightSet]] | None = None

    def _get(self, range_: int) -> WeightSet:
        ready = self.next[1].result() if self.next and self.next[0] == range_ else self._make(range_)
        following = (range_ + 1) % self.arguments[1].weight.num_sets
        self.next = (following, _worker().submit(self._make, following))
        return ready


@cache
def _worker() -> ThreadPoolExecutor:
    """One thread for all layers, in the order of their use, whose operations run on one core beside the model's."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "weight-sets")
    pool.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)  # threads to come would start with the number that was set last
    return pool
