"""Proof that quantized layers ran: counts their calls from outside, so that the layers stay pure and traceable."""

from collections import Counter

from torch import nn

from vdq.quant.convert import quantized_layers


class CallCounter:
    """Context manager; `calls[fqn]` and `total` count the calls of the quantized layers of `model` made inside it.

    Calls that run: a layer whose result is used in several steps (vdq.models.reuse), as that of
    `cross_attn.kv_linear`, counts once per batch and for every set of parameters, the others once per batch and step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: Counter[str] = Counter()
        self._layers = quantized_layers(model)
        self._hooks = []

    @property
    def total(self) -> int:
        return self.calls.total()

    def __enter__(self) -> "CallCounter":
        self._hooks = [layer.register_forward_pre_hook(self._count) for layer in self._layers.values()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, module: nn.Module, args: tuple) -> None:
        self.calls[module.fqn] += 1
