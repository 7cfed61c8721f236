"""Any method, with parameters of each step, as transformers that diffusers loads after `import vdq.diffusers`.

A folder of one `save_pretrained` of diffusers for every denoiser, under its name in the pipeline, a card and
`manifest.json`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vdq.backends.base import Backend
from vdq.diffusion.samplers import Sampler
from vdq.diffusion.timesteps import described
from vdq.errors import UserError
from vdq.export.base import Exporter, QuantizedRun
from vdq.export.handover_card import handover_card
from vdq.export.transformers import check_transformers, dtype_of, own_layers, timesteps_of, transformers
from vdq.files import write_text
from vdq.methods.base import Method
from vdq.models.base import VideoModel
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import projections
from vdq.quant.set_bytes import SetBytes
from vdq.quant.sharing import SharedTensors
from vdq.quant.stored_layers import stored_layer
from vdq.quant.weight_codes import stand_in

if TYPE_CHECKING:  # takes a second to import
    from diffusers.models.modeling_utils import ModelMixin

NAME = "diffusers"

USE = """\
```
import torch
import vdq.diffusers  # teaches diffusers to read the folder
from diffusers import {cls}

{name} = {cls}.from_pretrained("PATH", subfolder="{name}", torch_dtype=torch.{dtype})
```

Give the result to the class of the pipeline as `{name}=` (not to `DiffusionPipeline`, which may load its own), or put
the folder `{name}` in place of the pipeline's own and load the pipeline. Its schedule must be {timesteps}."""
LOST = [
    "Other schedules: a timestep that is not among those of calibration is refused at the call that has it.",
    "What needs linear layers afterwards: LoRA, fusing projections, saving or casting the loaded transformer.",
    "Whatever is not a transformer: text encoder, autoencoder, scheduler.",
]


class DiffusersExporter(Exporter):
    """Every method whose parameters are known before sampling or measured on a layer's input alone, of diffusers'
    transformers, on the backend of the run.
    """

    name, version = NAME, 1
    keeps_steps = True

    def check(self, method: Method, sampler: Sampler, backend: Backend) -> None:
        if not method.quantizes:
            raise UserError(f"export={NAME} writes quantized layers, quant=fp16 has none; other methods are allowed")
        if "bit_switch" in method.parts():
            raise UserError(
                f"export={NAME} cannot hold the part bit_switch of this method: bits follow the guided estimate, which "
                "a plain pipeline does not hand over"
            )

    def check_model(self, model: VideoModel) -> None:
        check_transformers(f"export={NAME}", model)

    def write(self, run: QuantizedRun, folder: Path) -> dict[str, Any]:
        windows, timesteps = run.model.windows(run.sampler), list(timesteps_of(run))
        uses, classes = [], {}
        for name, transformer in transformers(run.model, run.denoiser).items():
            facts = {
                "timesteps": timesteps,
                "window": [windows[name].start, windows[name].stop],
                "calls_a_step": run.model.family.calls_a_step,
                "kept_steps": list(run.state.kept_steps),
                "backend": {key: value for key, value in run.config["backend"].items() if key != "name"},
            }
            written = _written(transformer, own_layers(run.model, name, run.state.layers), facts)
            written.save_pretrained(folder / name)
            classes[name] = type(transformer).__name__
            own = described(tuple(timesteps[step] for step in windows[name]))
            uses.append(USE.format(name=name, cls=classes[name], dtype=dtype_of(run), timesteps=own))
        contents = {
            "num_steps": run.state.num_steps,
            "quantized_layers": len(run.state.layers),
            "classes": classes,
            "timesteps": timesteps,
        }
        facts = {"computed by": f"backend `{run.backend.arithmetic}`, as `config.json` says"}
        write_text(folder / "README.md", handover_card(run, NAME, use="\n\n".join(uses), facts=facts, lost=LOST))
        return contents


def _written(transformer: ModelMixin, layers: dict[str, LayerQuant], facts: dict[str, Any]) -> ModelMixin:
    """A copy whose `save_pretrained` writes quantized layers. The original is only read."""
    from vdq.diffusers import Stored, VdqConfig, VdqQuantizer

    weights = [transformer.get_submodule(fqn).weight for fqn in layers]
    nothing = {id(weight): nn.Parameter(stand_in(*weight.shape), requires_grad=False) for weight in weights}
    found, config = copy.deepcopy(transformer, nothing), VdqConfig(**facts)
    found.register_to_config(quantization_config=config, _name_or_path="")  # which would tell of this machine
    description: dict[str, dict] = {"layers": {}, "tensors": {}, "same": {}}
    stored = _tensors(transformer, layers, bool(config.kept_steps), description)
    # Clones: safetensors refuses tensors that share memory, as the tables of steps of several layers do.
    tensors = {name: t.detach().cpu().clone() for name, t in stored}
    found.hf_quantizer = VdqQuantizer(config, stored=Stored(tensors, description))
    return found


def _tensors(
    transformer: nn.Module, layers: dict[str, LayerQuant], kept: bool, written: dict[str, dict]
) -> Iterator[tuple[str, Tensor]]:
    """Yields what is stored of the layers: the codes of all weight sets, or the weight that they follow from where that
    is less (vdq.quant.set_bytes), and the weight where `kept` steps run with it. What a reader needs beside goes to
    `written`.
    """
    shared = SharedTensors()
    for p in projections(transformer):
        if p.fqn not in layers:
            continue
        quant = layers[p.fqn].to(p.weight.device)
        size = SetBytes.stored(p.weight, quant, held=kept)
        from_weight = size is not None and size.from_weight
        if from_weight or kept:
            yield f"{p.fqn}.weight", p.weight
        quant = quant if from_weight else quant.with_codes(p.weight)
        for name, _, tensor in stored_layer(p, quant, shared, written):
            yield name, tensor
