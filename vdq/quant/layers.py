"""The linear projections of a model by fqn, including the parts of fused ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Projection:
    """One quantizable linear map. weight [out, in], bias [out] or None are views of the model's tensors; `input_fqn`
    names the module that receives its input, which differs from `fqn` for a part of a fused linear.
    """

    fqn: str
    input_fqn: str
    weight: Tensor
    bias: Tensor | None


def linear_modules(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(fqn, module) of every nn.Linear, fused ones once."""
    return ((fqn, module) for fqn, module in model.named_modules() if isinstance(module, nn.Linear))


def split(fqn: str, linear: nn.Linear) -> list[Projection]:
    """The projections of one module. A fused linear has an attribute `parts`; `attn.qkv` with parts q, k, v gives
    `attn.q`, ...
    """
    parts = getattr(linear, "parts", None)
    if parts is None:
        return [Projection(fqn, fqn, linear.weight, linear.bias)]
    parent = fqn.rpartition(".")[0]
    weights = linear.weight.chunk(len(parts))
    biases = linear.bias.chunk(len(parts)) if linear.bias is not None else [None] * len(parts)
    names = [f"{parent}.{part}" if parent else part for part in parts]
    return [Projection(name, fqn, w, b) for name, w, b in zip(names, weights, biases, strict=True)]


def projections(model: nn.Module, quantizable: Callable[[str], bool] | None = None) -> list[Projection]:
    """The linear projections of the model in module order, those with `quantizable(fqn)`; None: all of them."""
    found = [projection for fqn, linear in linear_modules(model) for projection in split(fqn, linear)]
    return found if quantizable is None else [p for p in found if quantizable(p.fqn)]


def receiving_modules(model: nn.Module, quantizable: Callable[[str], bool] | None = None) -> dict[str, nn.Linear]:
    """The modules that get the inputs of these projections, by fqn, in module order: a fused linear once."""
    return {p.input_fqn: model.get_submodule(p.input_fqn) for p in projections(model, quantizable)}
