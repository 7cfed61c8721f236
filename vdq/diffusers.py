"""After ``import vdq.diffusers``, diffusers loads the transformers that `export=diffusers` wrote.

`from_pretrained` of the class, of AutoModel and of a pipeline then give a transformer whose layers are quantized and
take the parameters of the step from the timestep that the pipeline passes. diffusers has no way to register a
quantizer; this module adds one to the two dicts in which it looks them up.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from safetensors import safe_open
from torch import Tensor, nn

from vdq.backends.base import Backend
from vdq.diffusion.clock import BRANCHES, StepClock
from vdq.diffusion.timesteps import SAME, described, of_call
from vdq.errors import UserError
from vdq.quant.convert import apply_in_place
from vdq.quant.state import QuantState
from vdq.quant.stored_layers import restored_layers
from vdq.quant.weight_codes import stand_in
from vdq.rebuild import rebuild

LAYOUT = 1  # of the folder; no other is loaded
METADATA = "vdq"  # of the files of tensors: what describes the layers


class VdqMethod(StrEnum):
    """The name of this kind of quantization in `config.json`."""

    VDQ = "vdq"


class VdqConfig(QuantizationConfigMixin):
    """What `config.json` says of the quantization.

    timesteps: what the transformer is given at each step of the schedule that it was quantized for. window: the first
    step in which it works and the one behind the last. calls_a_step: 2 where guidance takes a conditional and then an
    unconditional call, None where the number is not known. kept_steps: at which every layer is the original one.
    backend: what computes the layers, `_target_` and its arguments. layout: of the folder.
    """

    def __init__(
        self,
        *,
        timesteps: list[float],
        window: list[int],
        calls_a_step: int | None,
        kept_steps: list[int],
        backend: dict[str, Any],
        layout: int = LAYOUT,
        quant_method: str = VdqMethod.VDQ,
    ) -> None:
        self.quant_method, self.layout = VdqMethod(quant_method), layout
        self.timesteps, self.window, self.calls_a_step = timesteps, window, calls_a_step
        self.kept_steps, self.backend = kept_steps, backend

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **_: Any) -> VdqConfig:
        """Reads what `config.json` has. Raises UserError for another layout."""
        if (layout := config_dict.get("layout")) != LAYOUT:
            raise UserError(f"layout={layout} of this quantized transformer must be {LAYOUT}; export it again")
        return cls(**config_dict)

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns what its text shows; diffusers asks for it."""
        return self.to_dict()


class Stored(NamedTuple):
    """Quantized layers that are to be written: tensors by name, and what a reader needs (vdq.quant.stored_layers)."""

    tensors: dict[str, Tensor]
    written: dict[str, dict]


class VdqQuantizer(DiffusersQuantizer):
    """Puts quantized layers in place of linears when diffusers has loaded the rest.

    Tensors of quantized layers pass diffusers by, which would cast scales to the dtype of the model. stored: what
    `save_pretrained` writes in place of the weights of these layers; None in a transformer that was loaded, which
    cannot be saved again: its layers are no linears any more.
    """

    use_keep_in_fp32_modules = True
    is_trainable = False

    def __init__(self, quantization_config: VdqConfig, *, stored: Stored | None = None, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.stored, self.dtype = stored, torch.float32
        self.tensors: dict[str, Tensor] = {}

    @property
    def is_serializable(self) -> bool:
        return self.stored is not None

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors, written = self.stored
        kept = {name: t for name, t in state_dict.items() if name.removesuffix(".weight") not in written["layers"]}
        return kept | tensors, {METADATA: json.dumps(written)}

    def validate_environment(self, *, device_map: Any = None, **_: Any) -> None:
        if isinstance(device_map, dict) and len(set(device_map.values())) > 1:
            raise UserError(f"device_map={device_map} must be one device: the layers read one clock")

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype | None:
        self.dtype = torch_dtype or torch.float32
        return torch_dtype

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        with safe_open(checkpoint_files[0], framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA)
        if text is None:
            raise UserError(f"{checkpoint_files[0]} does not describe its quantized layers; export it again")
        self.written = json.loads(text)
        self.own = {*self.written["tensors"], *(f"{fqn}.weight" for fqn in self.written["layers"])}
        return [name for name in loaded_keys if name not in self.own]

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        return [name for name in missing_keys if name not in self.own]

    def maybe_update_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        self.tensors |= {name: tensor for name, tensor in state_dict.items() if name in self.own}
        # Clones: the rounding of sums depends on how a tensor is aligned, and a mapped file aligns it anyhow.
        return {name: tensor.clone() for name, tensor in state_dict.items() if name not in self.own}

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        for fqn in self.written["layers"]:
            linear = model.get_submodule(fqn)  # without a weight, which is not among what diffusers loads
            linear.weight = nn.Parameter(stand_in(*linear.weight.shape), requires_grad=False)

    def _process_model_after_weight_loading(self, model: nn.Module) -> None:
        config, steps = self.quantization_config, len(self.quantization_config.timesteps)
        where = f"the quantized {type(model).__name__}"
        layers = restored_layers(model, self.written | {"num_steps": steps}, self.tensors, where)
        for fqn in layers:
            linear = model.get_submodule(fqn)
            if (weight := self.tensors.get(f"{fqn}.weight")) is None:
                weight = stand_in(*linear.weight.shape).to(_device(model))
            else:
                weight = weight.to(_device(model), copy=True)  # aligned as above
            linear.weight = nn.Parameter(weight, requires_grad=False)
            linear.bias = None if linear.bias is None else nn.Parameter(linear.bias.float(), requires_grad=False)
        clock, backend = StepClock(steps).to(_device(model)), rebuild(config.backend, Backend, "backend")
        state = QuantState(layers, steps, kept_steps=tuple(config.kept_steps))
        apply_in_place(model, state, clock, backend)
        for fqn in layers:
            model.get_submodule(fqn).to(self.dtype)
        follower = TimestepFollower(clock, config.timesteps, range(*config.window), config.calls_a_step)
        model.register_forward_pre_hook(follower, with_kwargs=True, prepend=True)
        self.tensors = {}


class TimestepFollower:
    """A pre-hook of a transformer that sets the clock to the step whose timestep is passed.

    Raises UserError for a timestep of another schedule, for one at which this transformer does not work, and when a
    step is left out.
    """

    def __init__(self, clock: StepClock, timesteps: list[float], window: range, calls_a_step: int | None) -> None:
        self.clock, self.timesteps, self.window, self.calls_a_step = clock, timesteps, window, calls_a_step
        self.step: int | None = None
        self.calls, self.seen = 0, []

    def __call__(self, module: nn.Module, inputs: tuple, named_inputs: dict[str, Any]) -> None:
        given = of_call(module, inputs, named_inputs)
        value = float(given.max())  # conditioned frames have timestep 0
        step = min(self.window, key=lambda step: abs(self.timesteps[step] - value))
        if step != self.step:
            self.calls = 0
            if self.step is None or step < self.step:
                self.seen = []
            self.seen.append(value)
        slack = max(SAME, torch.finfo(given.dtype).eps if given.is_floating_point() else 0) * max(abs(value), 1)
        if abs(self.timesteps[step] - value) > slack or (self.seen[1:] and step > self.step + 1):
            self._refuse(module)
        branch = BRANCHES[self.calls % len(BRANCHES)] if self.calls_a_step == len(BRANCHES) else None
        self.step, self.calls = step, self.calls + 1
        self.clock.set(step, branch)

    def _refuse(self, module: nn.Module) -> None:
        seen, self.step, self.seen = self.seen, None, []
        expected = tuple(self.timesteps[step] for step in self.window)
        raise UserError(
            f"a schedule with timesteps {', '.join(f'{value:.5g}' for value in seen)} is not the one that this "
            f"{type(module).__name__} was quantized for, {described(expected)}"
        )


def _device(model: nn.Module) -> torch.device:
    """Returns the device of the rest of the model."""
    linears = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    return next(p.device for p in model.parameters() if id(p) not in linears)


if not hasattr(DiffusersQuantizer, "maybe_update_state_dict"):
    raise UserError(f"vdq.diffusers needs a diffusers such as 0.42, this one is {diffusers.__version__}")
auto.AUTO_QUANTIZER_MAPPING[VdqMethod.VDQ.value] = VdqQuantizer
auto.AUTO_QUANTIZATION_CONFIG_MAPPING[VdqMethod.VDQ.value] = VdqConfig
