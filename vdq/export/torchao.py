"""One-range static methods as torchao's Int8Tensor, which plain diffusers loads without this program.

A folder of one `save_pretrained` of diffusers for every denoiser, under its name in the pipeline, a card and
`manifest.json`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vdq.backends.base import Backend
from vdq.backends.fake_quant import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Sampler
from vdq.export.base import Exporter, QuantizedRun
from vdq.export.handover_card import handover_card
from vdq.export.one_range import Int8Layer, check_method, int8_layer
from vdq.export.transformers import check_transformers, dtype_of, own_layers, transformers
from vdq.files import write_text
from vdq.installation import require
from vdq.methods.base import Method
from vdq.models.base import VideoModel
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.linear import LayerSpec

if TYPE_CHECKING:  # an extra, and what takes a second to import
    from diffusers.models.modeling_utils import ModelMixin
    from torchao.quantization import Int8Tensor

NAME = "torchao"
INPUT_DIMENSIONS = 3  # [B, tokens, channels]; torchao wants scales of as many dimensions as the input has
ROWS = 32  # of the input that layers are compared on

USE = """\
```
import torch
from diffusers import {cls}

{name} = {cls}.from_pretrained("PATH", subfolder="{name}", torch_dtype=torch.{dtype})
```

Nothing of vdq is imported. diffusers needs `accelerate` and `torchao` for it, and loads bfloat16 without
`torch_dtype`. Give the result to the class of the pipeline as `{name}=` (not to `DiffusionPipeline`, which may load its
own), or put the folder `{name}` in place of the pipeline's own and load the pipeline."""
LOST = [
    "The schedule: ranges were calibrated for {steps} steps of the run's scheduler, and nothing here refuses another.",
    "Rounding: torchao multiplies by the reciprocals of scales and smoothing factors where vdq divides; a code at the "
    "border between two may then be the other one.",
    "Whatever is not a transformer: text encoder, autoencoder, scheduler.",
]


class TorchaoExporter(Exporter):
    """Static methods of 8 bits with symmetric weights and one range for all steps, of diffusers' transformers."""

    name, version = NAME, 1

    def check(self, method: Method, sampler: Sampler, backend: Backend) -> None:
        check_method(f"export={NAME}", method, sampler)
        require(f"export={NAME}", NAME, "torchao", "accelerate")

    def check_model(self, model: VideoModel) -> None:
        check_transformers(f"export={NAME}", model)

    def write(self, run: QuantizedRun, folder: Path) -> dict[str, Any]:
        classes, psnrs = {}, []
        for name, transformer in transformers(run.model, run.denoiser).items():
            layers = own_layers(run.model, name, run.state.layers)
            quantized(transformer, layers).save_pretrained(folder / name)
            classes[name] = type(transformer).__name__
            psnrs += [agreement(transformer.get_submodule(fqn), quant) for fqn, quant in layers.items()]
        contents = {
            "num_steps": run.state.num_steps,
            "quantized_layers": len(run.state.layers),
            "classes": classes,
            "torchao_psnr": min(torchao for torchao, _ in psnrs),
            "simulated_psnr": min(simulated for _, simulated in psnrs),
        }
        facts = {
            "torchao against vdq's simulation": f"{contents['torchao_psnr']:.1f} dB at least, of any layer's output",
            "the simulation against full precision": f"{contents['simulated_psnr']:.1f} dB at least",
        }
        use = "\n\n".join(USE.format(name=name, cls=cls, dtype=dtype_of(run)) for name, cls in classes.items())
        lost = [line.format(steps=run.state.num_steps) for line in LOST]
        write_text(folder / "README.md", handover_card(run, NAME, use=use, facts=facts, lost=lost))
        return contents


def quantized(transformer: ModelMixin, layers: dict[str, LayerQuant]) -> ModelMixin:
    """Copies a transformer of diffusers with these layers, by fqn, as torchao's tensors. The copy is written."""
    from diffusers import TorchAoConfig
    from diffusers.quantizers.torchao import TorchAoHfQuantizer
    from torchao.quantization import Int8StaticActivationInt8WeightConfig, PerRow, PerTensor

    memo: dict[int, Any] = {}
    for fqn, quant in layers.items():
        linear = transformer.get_submodule(fqn)
        tensor = int8_tensor(int8_layer(fqn, quant, linear.weight), linear.weight.dtype)
        memo[id(linear.weight)] = nn.Parameter(tensor, requires_grad=False)
    found = copy.deepcopy(transformer, memo)
    config = TorchAoConfig(Int8StaticActivationInt8WeightConfig(granularity=[PerTensor(), PerRow()]))
    found.hf_quantizer = TorchAoHfQuantizer(config)
    found.hf_quantizer.validate_environment()
    found.register_to_config(quantization_config=config, _name_or_path="")  # which would tell of this machine
    return found


def int8_tensor(layer: Int8Layer, dtype: torch.dtype) -> Int8Tensor:
    """Makes torchao's weight of a layer whose inputs have three dimensions. dtype: that of the layer's output."""
    from torchao.quantization import Int8Tensor, PerTensor
    from torchao.quantization.quant_primitives import MappingType
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs

    ones = (1,) * INPUT_DIMENSIONS
    symmetric = not layer.act_zero_point.any()
    mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    return Int8Tensor(
        layer.codes,
        layer.weight_scale[:, None],
        [1, layer.codes.shape[1]],
        dtype,
        act_quant_scale=layer.act_scale.view(ones),
        act_quant_zero_point=None if symmetric else layer.act_zero_point.to(torch.int8).view(ones),
        act_pre_scale=None if layer.smoothing is None else 1 / layer.smoothing,
        act_quant_kwargs=QuantizeTensorToInt8Kwargs(granularity=PerTensor(), mapping_type=mapping),
    )


@torch.no_grad()
def agreement(linear: nn.Linear, quant: LayerQuant) -> tuple[float, float]:
    """Measures a layer's output: the PSNR in dB of what torchao computes against vdq's simulation, and of the
    simulation against full precision, all in the dtype of the weight. The input is uniform over the calibrated range.
    """
    weight, bias, layer = linear.weight, linear.bias, int8_layer("", quant, linear.weight)
    codes = torch.rand(1, ROWS, linear.in_features, generator=torch.Generator().manual_seed(0)) * 255 - 128
    x = (codes.to(weight.device) - layer.act_zero_point) * layer.act_scale
    x = (x if layer.smoothing is None else x * layer.smoothing).to(weight.dtype)
    spec = LayerSpec("", weight, bias, quant.to(weight.device), StepClock(quant.num_steps), BatchLayout())
    simulated = FakeQuantBackend().layer(spec)(x)
    torchao = nn.functional.linear(x, int8_tensor(layer, weight.dtype), bias)
    return psnr(torchao, simulated), psnr(simulated, nn.functional.linear(x, weight, bias))


def psnr(found: Tensor, expected: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the peak being the largest absolute value; infinite for equal tensors."""
    found, expected = found.float(), expected.float()
    return float(10 * torch.log10(expected.abs().max() ** 2 / (found - expected).square().mean()))
