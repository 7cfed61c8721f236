"""Static recipes as ONNX with QuantizeLinear and DequantizeLinear, which ONNX Runtime and OpenVINO run in integers.

A folder of `denoiser*.onnx`, the tensors that they share in `denoiser.data`, the null caption, a card and
`manifest.json`, which says which graph serves which step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vdq.backends.base import Backend
from vdq.backends.integer import BITS
from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Sampler
from vdq.export.base import Exporter, QuantizedRun
from vdq.export.onnx_runtime import KIND, NULL_CAPTION, PACKAGES, VERSION, check_installed
from vdq.files import complete_or_nothing, write_text
from vdq.methods.base import Method
from vdq.models.stdit import STDiT
from vdq.quant.convert import apply

STEPS = ("gather", "constant")
GROUPS = ("model", "sampler", "quant", "backend")
CARD = """# {run}

The denoiser of `{model}`, quantized statically: `quant={quant}`, {weight_bits}-bit weights per output channel,
{act_bits}-bit activations per tensor. Made by vdq:
`python run.py stages=[export] export=onnx_qdq export.steps={steps}`.

ONNX opset 21, IR version 10. One prompt a call: `x` fp32 {x}, its two rows are the same latents; `timestep` int64 [2];
`y` fp32 {y}, the features of the caption and the null caption (`{null}`); `mask` int64 {mask}, 1 where a token of the
caption counts. {step} `output` fp32 {output}: noise estimate, then variance logits.

The {count} graph(s) read their tensors from `denoiser.data`; `manifest.json` names the graph of every step of
`{sampler}`, and holds the configuration and the SHA-256 of every file. The graphs fit no other sampler or step count.

```
python -m vdq.export.sample PATH --prompt "..."
```
{random}
Licence: these weights are derived from those of `{model}` and stay under their licence.
"""
STEP = "`step` int64 scalar, the number of the denoising step, where a graph has this input."
NO_STEP = "No graph takes the step: every scale is a constant."


class OnnxQdqExporter(Exporter):
    """Static recipes of at most 8 bits.

    steps: "gather", one graph for every set of weights, which takes the step as an input and gathers what changes with
    it; or "constant", one graph for all steps of equal parameters, in which every scale is a constant and no weight has
    a zero point: what OpenVINO needs to compute in integers. Raises ValueError for another value.
    """

    name, version = KIND, VERSION

    def __init__(self, *, path: str | None = None, steps: str = "gather") -> None:
        super().__init__(path=path)
        if steps not in STEPS:
            raise ValueError(f"export.steps={steps} must be one of {', '.join(STEPS)}")
        self.steps = steps

    def check(self, method: Method, sampler: Sampler, backend: Backend) -> None:
        if not method.quantizes:
            raise ValueError("export=onnx_qdq exports quantized models, quant=fp16 quantizes nothing")
        if not method.static:
            raise ValueError(
                f"export=onnx_qdq cannot export {type(method).__name__}: its ranges are measured at run time, a QDQ "
                "graph holds constants; static recipes are allowed"
            )
        for field in ("weight", "act"):
            bits = getattr(method, f"{field}_bits")
            if bits > BITS:
                raise ValueError(f"export=onnx_qdq: bits.{field}={bits} must be at most {BITS}, products are of bytes")
        check_installed(PACKAGES)

    def write(self, run: QuantizedRun, folder: Path) -> dict[str, Any]:
        # Not with this module, which is imported wherever the options of `export` are listed.
        from vdq.export import onnx_graph
        from vdq.export.onnx_kernels import check_integer
        from vdq.export.onnx_linear import OnnxBackend

        if not isinstance(run.denoiser, STDiT):
            raise ValueError(f"export=onnx_qdq knows STDiT, not {type(run.denoiser).__name__}")
        quantized = apply(run.denoiser, run.state, StepClock(run.state.num_steps), OnnxBackend())
        template, layers = onnx_graph.traced(quantized), onnx_graph.layer_specs(quantized)
        graphs = onnx_graph.write_graphs(template, layers, folder, constant=self.steps == "constant")
        for name in dict.fromkeys(graphs):
            check_integer(folder / name, run.state.layers)
        with complete_or_nothing(folder / NULL_CAPTION) as partial:
            save_file({"y_embedding": run.denoiser.y_embedder.y_embedding.detach().clone()}, partial)
        contents = {
            "num_steps": run.state.num_steps,
            "graphs": graphs,
            "steps": self.steps,
            "latent_shape": list(run.model.latent_shape),
            "fps": run.model.fps,
            "seed": run.config["seed"],
            "quantized_layers": len(run.state.layers),
            "config": {group: run.config[group] for group in GROUPS},
            "companions": run.model.companions,
        }
        write_text(folder / "README.md", self._card(run, contents))
        return contents

    def _card(self, run: QuantizedRun, contents: dict[str, Any]) -> str:
        params = next(iter(run.state.layers.values()))
        channels, *size = run.model.latent_shape
        length, width = run.denoiser.y_embedder.y_embedding.shape
        return CARD.format(
            run=run.name,
            model=run.config["model"]["name"],
            quant=run.config["quant"]["name"],
            weight_bits=params.weight_bits,
            act_bits=params.act_bits,
            steps=self.steps,
            x=[2, channels, *size],
            y=[2, 1, length, width],
            null=NULL_CAPTION,
            mask=[1, length],
            step=STEP if self.steps == "gather" else NO_STEP,
            output=[2, 2 * channels, *size],
            count=len(set(contents["graphs"])),
            sampler=run.config["sampler"]["_target_"].rpartition(".")[2],
            random="\nThe weights are random: this is for work on structure and speed.\n" if run.model.random else "",
        )
