"""From statistics to grids, and from the parts of layers to a quantized model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.quant.affine import qparams_from_range, tensor_range
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.bit_switch import BitSwitch
from vdq.quant.keep import KeptSteps, of_same_weights
from vdq.quant.layers import Projection, linear_modules, split
from vdq.quant.linear import FusedParts, LayerSpec
from vdq.quant.parts import AffineWeights, InputTransform
from vdq.quant.state import QuantState


class LayerBuilder(Protocol):
    """What `apply` needs of a backend (vdq.backends.base.Backend)."""

    def layer(self, layer: LayerSpec) -> nn.Module:
        """The module of one layer, with its `fqn`."""

    def fuse(self, module: nn.Module) -> nn.Module | None:
        """What replaces a module whose layers are built, or None."""


def affine_weights(
    weight: Tensor, steps: Tensor, *, bits: int, symmetric: bool = False, inputs: Sequence[InputTransform] = ()
) -> AffineWeights:
    """Min-max grids per output channel and weight set, of the weight after the transforms of the input:
    weight [out, in], steps long [N], the set of every step.
    """
    ranges = []
    for set_ in range(max((transform.num_sets for transform in inputs), default=1)):
        # One set at a time: K copies of a large weight do not fit into memory.
        transformed = weight.detach().float()
        for transform in inputs:
            transformed = transform.weight(transformed, set_)
        ranges.append(tensor_range(transformed, "per_channel"))
    lo, hi = (torch.stack(bounds) for bounds in zip(*ranges, strict=True))
    scale, zero_point = qparams_from_range(lo, hi, bits=bits, symmetric=symmetric)
    return AffineWeights(bits=bits, symmetric=symmetric, scale=scale, zero_point=zero_point, steps=steps)


def apply(denoiser: nn.Module, state: QuantState, clock: StepClock, backend: LayerBuilder) -> nn.Module:
    """A quantized copy of `denoiser`, whose layers read `clock`. The original stays as it is, for the reference.

    Only what is not quantized is copied, and no weight that a layer runs with at kept steps. Every module that
    `backend` built carries its `fqn`. Raises ValueError when the step counts differ, the state names a layer the model
    lacks, or the backend does not support a layer.
    """
    rows = BatchLayout()
    built = _built(denoiser, state, clock, backend, rows)
    quantized = copy.deepcopy(denoiser, {id(denoiser.get_submodule(fqn)): module for fqn, module in built.items()})
    _finish(quantized, state, backend, rows)
    return quantized


def apply_in_place(denoiser: nn.Module, state: QuantState, clock: StepClock, backend: LayerBuilder) -> None:
    """Replaces layers as `apply` does, in the denoiser itself: for one that nobody else uses."""
    rows = BatchLayout()
    for fqn, module in _built(denoiser, state, clock, backend, rows).items():
        denoiser.set_submodule(fqn, module)
    _finish(denoiser, state, backend, rows)


def _built(
    denoiser: nn.Module, state: QuantState, clock: StepClock, backend: LayerBuilder, rows: BatchLayout
) -> dict[str, nn.Module]:
    """What takes the place of linear modules, by their fqn."""
    if clock.num_steps != state.num_steps:
        raise ValueError(f"clock.num_steps={clock.num_steps} must equal the state's num_steps={state.num_steps}")
    switch, missing = _bit_switch(state, clock), set(state.layers)
    found: dict[str, nn.Module] = {}
    for fqn, linear in linear_modules(denoiser):
        parts = split(fqn, linear)
        quants = {p.fqn: state.layers[p.fqn].to(p.weight.device) for p in parts if p.fqn in state.layers}
        specs = {
            p.fqn: LayerSpec(p.fqn, p.weight, p.bias, quant, quant.clock(clock), rows, switch)
            for p in parts
            if (quant := quants.get(p.fqn)) is not None
        }
        missing -= specs.keys()
        if specs:
            built = [backend.layer(specs[p.fqn].unfolded()) if p.fqn in specs else _plain(p) for p in parts]
            names = getattr(linear, "parts", None)
            module = FusedParts(dict(zip(names, built, strict=True))) if names else built[0]
            if state.kept_steps:
                module = KeptSteps(of_same_weights(linear), module, clock, state.kept_steps)
            found[fqn] = module
    if missing:
        raise ValueError(f"the model has no layer {min(missing)} that the quantization state names")
    return found


def _finish(quantized: nn.Module, state: QuantState, backend: LayerBuilder, rows: BatchLayout) -> None:
    """What is left when the layers are in their places."""
    _fuse(quantized, backend)
    if any(quant.act.needs_rows for quant in state.layers.values()):
        for net in quantized.values() if isinstance(quantized, nn.ModuleDict) else [quantized]:
            net.register_forward_pre_hook(rows, with_kwargs=True)


def _bit_switch(state: QuantState, clock: StepClock) -> BitSwitch | None:
    """The one that all layers share whose bits are chosen while sampling."""
    found = {found for quant in state.layers.values() if (found := quant.act.switching) is not None}
    if len(found) > 1:
        raise ValueError(f"layers switch between bits differently, (low, high, delta) must be one of {sorted(found)}")
    if not found:
        return None
    return BitSwitch(clock, **dict(zip(("low", "high", "delta"), *found, strict=True)), kept=state.kept_steps)


def _fuse(module: nn.Module, backend: LayerBuilder) -> None:
    """Replaces the outermost modules inside `module` that the backend fuses."""
    for name, child in list(module.named_children()):
        fused = backend.fuse(child)
        if fused is None:
            _fuse(child, backend)
        else:
            module.add_module(name, fused)


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that `apply` put in, by fqn; the outer one where a layer is inside another of its name."""
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        if isinstance(getattr(module, "fqn", None), str):
            found.setdefault(module.fqn, module)
    return found


def _plain(p: Projection) -> nn.Linear:
    """A part of a fused linear that stays in full precision."""
    linear = nn.Linear(p.weight.shape[1], p.weight.shape[0], p.bias is not None, device="meta")
    linear.weight = nn.Parameter(p.weight.detach().clone(), p.weight.requires_grad)
    if p.bias is not None:
        linear.bias = nn.Parameter(p.bias.detach().clone(), p.bias.requires_grad)
    return linear
