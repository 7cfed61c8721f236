"""Denoisers that are diffusers' own transformers, which other programs load by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch import nn

from vdq.diffusion.timesteps import Timesteps, listed
from vdq.errors import UserError

if TYPE_CHECKING:  # diffusers takes a second to import
    from diffusers.models.modeling_utils import ModelMixin

    from vdq.export.base import QuantizedRun
    from vdq.models.base import VideoModel

T = TypeVar("T")


def check_transformers(option: str, model: VideoModel) -> None:
    """Raises UserError unless every denoiser of the model is a class of diffusers. Loads no weights."""
    for name, net in transformers(model, model.structure).items():
        if not type(net).__module__.startswith("diffusers."):
            raise UserError(
                f"{option} writes transformers that plain diffusers loads, the model's {name} is {type(net).__name__} "
                "of this program; model=diffusers and the models built on it are allowed"
            )


def transformers(model: VideoModel, denoiser: nn.Module) -> dict[str, ModelMixin]:
    """Returns the transformers of a denoiser of the model, by their names in its pipeline."""
    if len(model.denoisers) == 1:
        return {model.denoisers[0]: denoiser}
    return {name: denoiser[name] for name in model.denoisers}


def own_layers(model: VideoModel, name: str, layers: dict[str, T]) -> dict[str, T]:
    """Picks the entries of `layers`, by fqn, of the transformer `name`, and names them as inside it."""
    if len(model.denoisers) == 1:
        return layers
    return {fqn.removeprefix(f"{name}."): value for fqn, value in layers.items() if fqn.startswith(f"{name}.")}


def dtype_of(run: QuantizedRun) -> str:
    """Returns the dtype of the linears that were quantized, as torch names it."""
    weight = run.denoiser.get_submodule(next(iter(run.state.layers))).weight
    return str(weight.dtype).removeprefix("torch.")


def timesteps_of(run: QuantizedRun) -> Timesteps:
    """Returns what the denoisers are given at each step."""
    return run.state.timesteps or listed(run.model.timesteps(run.sampler))
