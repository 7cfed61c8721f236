"""One-range symmetric methods in the layout that NVIDIA's ModelOpt writes and servers read.

A folder of one `save_pretrained` of diffusers for every denoiser, under its name in the pipeline, whose quantized
linears have int8 weights with `weight_scale` and `input_scale` beside them; a card and `manifest.json`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vdq import __version__
from vdq.backends.base import Backend
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.export.base import Exporter, QuantizedRun
from vdq.export.handover_card import handover_card
from vdq.export.one_range import check_method, int8_layer, unfit
from vdq.export.transformers import check_transformers, own_layers, transformers
from vdq.files import write_json, write_text
from vdq.methods.base import Method
from vdq.models.base import VideoModel
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import linear_modules

if TYPE_CHECKING:  # takes a second to import
    from diffusers.models.modeling_utils import ModelMixin

NAME = "modelopt"
ALGORITHM = "W8A8_SQ_PER_CHANNEL"  # ModelOpt's name of int8 with per-channel weights and per-tensor inputs
CONFIG = "hf_quant_config.json"

USE = """\
**No server has run this folder.** Its names were compared with the sources of ModelOpt and of loaders; the
documentation of vdq lists file by file which of them know it. Of a quantized linear the files have

| tensor | |
|---|---|
| `weight` | int8 [out, in] |
| `weight_scale` | fp32 [out] |
| `input_scale` | fp32 scalar |
{smoothing}| `bias` | as it was |

and its output is round(x{divided} / input_scale) clamped to -128..127, times weight, times input_scale weight_scale,
plus bias. Put the folder{plural} {names} in place of the pipeline's own."""
SMOOTHING = "| `pre_quant_scale` | fp32 [in], which the input is multiplied by first |\n"
LOST = [
    "The schedule: ranges were calibrated for {steps} steps of the run's scheduler, and nothing here refuses another.",
    "Whatever is not a transformer: text encoder, autoencoder, scheduler.",
]
SMOOTHING_LOST = (
    "Loaders that do not know `pre_quant_scale`, or fuse linears of one input, each of which has its own here, cannot "
    "take this folder; a method without smoothing, quant=cw_tw, has none."
)

STEPS_LOST = (
    "The original weights: a step policy runs kept steps with these integer weights and inputs of 16 bits, where the "
    "run had the weights as they were."
)


class ModelOptExporter(Exporter):
    """Static methods of 8 bits with symmetric weights and activations and one range for all steps, of diffusers'
    transformers.
    """

    name, version = NAME, 1
    keeps_steps = True

    def check(self, method: Method, sampler: Sampler, backend: Backend) -> None:
        check_method(f"export={NAME}", method, sampler, symmetric_acts=True)

    def check_steps(self, kept: Sequence[int], num_steps: int) -> None:
        first, last = _ends(kept, num_steps)
        if first + last < len(kept):
            raise UserError(
                f"export={NAME}: quant.keep_steps={list(kept)} must be the first and the last of {num_steps} steps, "
                "a step policy has no others"
            )

    def check_model(self, model: VideoModel) -> None:
        check_transformers(f"export={NAME}", model)

    def write(self, run: QuantizedRun, folder: Path) -> dict[str, Any]:
        classes = {}
        for name, transformer in transformers(run.model, run.denoiser).items():
            layers = own_layers(run.model, name, run.state.layers)
            policy = _step_policy(name, run.state.kept_steps, run.state.num_steps)
            _written(transformer, layers, policy).save_pretrained(folder / name)
            write_json(folder / name / CONFIG, _hf_quant_config(transformer, layers))
            classes[name] = type(transformer).__name__
        smoothed = any(quant.inputs for quant in run.state.layers.values())
        contents = {
            "num_steps": run.state.num_steps,
            "quantized_layers": len(run.state.layers),
            "classes": classes,
            "quant_algo": ALGORITHM,
            "smoothed": smoothed,
        }
        use = USE.format(
            smoothing=SMOOTHING if smoothed else "",
            divided=" pre_quant_scale" if smoothed else "",
            plural="s" if len(classes) > 1 else "",
            names=" and ".join(f"`{name}`" for name in classes),
        )
        lost = [line.format(steps=run.state.num_steps) for line in LOST]
        lost += [SMOOTHING_LOST] * smoothed + [STEPS_LOST] * bool(run.state.kept_steps)
        write_text(folder / "README.md", handover_card(run, NAME, use=use, facts={"layout": ALGORITHM}, lost=lost))
        return contents


def _written(transformer: ModelMixin, layers: dict[str, LayerQuant], policy: dict[str, Any]) -> ModelMixin:
    """A copy with integer weights and scales, whose `save_pretrained` is the layout. The original is only read."""
    memo, scales = {}, {}
    for fqn, quant in layers.items():
        if (reason := unfit(quant, symmetric_acts=True)) is not None:
            raise UserError(f"layer {fqn}: {reason}")
        linear = transformer.get_submodule(fqn)
        layer = int8_layer(fqn, quant, linear.weight)
        memo[id(linear.weight)] = nn.Parameter(layer.codes, requires_grad=False)
        scales[fqn] = {"weight_scale": layer.weight_scale, "input_scale": layer.act_scale}
        if layer.smoothing is not None:
            scales[fqn]["pre_quant_scale"] = 1 / layer.smoothing
    found = copy.deepcopy(transformer, memo)
    for fqn, tensors in scales.items():
        for name, tensor in tensors.items():
            found.get_submodule(fqn).register_buffer(name, tensor.clone())
    config = _quantization_config(transformer, layers) | policy
    found.register_to_config(quantization_config=config, _name_or_path="")
    return found


def _quantization_config(transformer: nn.Module, layers: dict[str, LayerQuant]) -> dict[str, Any]:
    """What `config.json` says, in the form that ModelOpt gives it there."""
    inputs = {"dynamic": False, "num_bits": 8, "type": "int"}
    group = {"input_activations": inputs, "weights": inputs | {"strategy": "channel"}, "targets": ["Linear"]}
    return {
        "quant_method": "modelopt",
        "quant_algo": ALGORITHM,
        "config_groups": {"group_0": group},
        "ignore": _kept(transformer, layers),
        "producer": _producer(),
    }


def _step_policy(name: str, kept: Sequence[int], num_steps: int) -> dict[str, Any]:
    """What `config.json` says of steps in higher precision, as servers of FP8 read it; nothing if there are none."""
    if not kept:
        return {}
    first, last = _ends(kept, num_steps)
    policy = {
        "schema_version": 1,
        "type": "first_last_n",
        "index_space": "denoising_loop_iteration",
        "scope": [name],
        "default_mode": "native",
        "first_steps": {"count": first, "mode": "a16"},
        "last_steps": {"count": last, "mode": "a16"},
        "overlap": "a16",
        "reasoner": "native",
    }
    return {"runtime": {"diffusion_step_policy": policy}}


def _ends(kept: Sequence[int], num_steps: int) -> tuple[int, int]:
    """Counts the kept steps at the beginning and at the end."""
    first = next(step for step in range(num_steps) if step not in kept)
    last = next(step for step in range(num_steps) if num_steps - 1 - step not in kept)
    return first, last


def _hf_quant_config(transformer: nn.Module, layers: dict[str, LayerQuant]) -> dict[str, Any]:
    """The same in the form of `hf_quant_config.json`."""
    algorithms = {"quant_algo": ALGORITHM, "kv_cache_quant_algo": None}
    return {"producer": _producer(), "quantization": algorithms | {"exclude_modules": _kept(transformer, layers)}}


def _kept(transformer: nn.Module, layers: dict[str, LayerQuant]) -> list[str]:
    """Linears that are not quantized."""
    return [fqn for fqn, _ in linear_modules(transformer) if fqn not in layers]


def _producer() -> dict[str, str]:
    return {"name": "vdq", "version": __version__}
