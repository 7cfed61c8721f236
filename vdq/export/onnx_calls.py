"""Calls of a transformer of diffusers as graphs know them: tensors by name, everything else fixed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import Sampler
from vdq.models.base import VideoModel


class _Seen(Exception):
    """Leaves a sampling when the denoiser is called."""


def first_call(model: VideoModel, prompt: str, sampler: Sampler) -> dict[str, Any]:
    """Records the arguments, all by name, of the first call of a denoiser when the model samples one prompt that it
    has prepared; nothing is computed. Experts of one pipeline are called alike.
    """
    denoiser, found = model.denoiser, {}

    def look(module: nn.Module, inputs: tuple, named_inputs: dict[str, Any]) -> None:
        if inputs:
            raise ValueError(f"{type(module).__name__} is called with {len(inputs)} arguments without a name")
        found.update(named_inputs)
        raise _Seen

    nets = list(denoiser.values()) if isinstance(denoiser, nn.ModuleDict) else [denoiser]
    hooks = [net.register_forward_pre_hook(look, with_kwargs=True) for net in nets]
    try:
        model.sample(denoiser, model.encode([prompt]), PromptNoise(0, [0], None), StepClock(sampler.steps), sampler)
    except _Seen:
        return found
    finally:
        for hook in hooks:
            hook.remove()
    raise ValueError("sampling called no denoiser")


def tensors_of(call: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors among the arguments of a call, floats in fp32, on the CPU. Of an argument that holds several,
    such as a tuple, the name is followed by the place of each.
    """
    leaves, _ = pytree.tree_flatten_with_path(call)
    return {_name(path): _plain(leaf) for path, leaf in leaves if isinstance(leaf, Tensor)}


def fixed_of(call: dict[str, Any]) -> dict[str, str]:
    """Returns what else a call is given, by name, as text: numbers and flags, which become part of a graph."""
    leaves, _ = pytree.tree_flatten_with_path(call)
    return {_name(path): repr(leaf) for path, leaf in leaves if not isinstance(leaf, Tensor)}


class TensorCall(nn.Module):
    """A transformer as a function of the tensors of a call, in the order of `tensors_of`; returns its output alone."""

    def __init__(self, transformer: nn.Module, call: dict[str, Any]) -> None:
        super().__init__()
        self.transformer = transformer
        leaves, self.form = pytree.tree_flatten(call)
        self.fixed = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def forward(self, *tensors: Tensor) -> Tensor:
        leaves = list(self.fixed)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        output = self.transformer(**pytree.tree_unflatten(leaves, self.form))
        return output[0] if isinstance(output, tuple) else output.sample


def _name(path: tuple) -> str:
    return "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor
