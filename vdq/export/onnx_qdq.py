"""Static methods as ONNX with QuantizeLinear and DequantizeLinear, which ONNX Runtime and OpenVINO run in integers.

A folder of `denoiser*.onnx`, the tensors that they share in `denoiser.data`, the null caption, a card and
`manifest.json`, which says which graph serves which step.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from vdq.backends.base import Backend
from vdq.backends.integer import BITS
from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.export.base import Exporter, QuantizedRun
from vdq.export.onnx_card import INT8, NOTES, UINT8, card, transformer_card
from vdq.export.onnx_runtime import KIND, NULL_CAPTION, PACKAGES, VERSION
from vdq.export.transformers import transformers
from vdq.files import complete_or_nothing, write_text
from vdq.installation import require
from vdq.methods.base import Method
from vdq.models.base import VideoModel
from vdq.models.stdit import STDiT
from vdq.quant.convert import apply

log = logging.getLogger(__name__)
STEPS = ("gather", "constant")
FAMILIES = ("STDiT", "Wan", "LTX-Video", "CogVideoX", "Mochi")  # whose graphs the tests compare with the network
GROUPS = ("model", "sampler", "quant", "backend")


class OnnxQdqExporter(Exporter):
    """Static methods of at most 8 bits.

    steps: "gather", one graph for every set of weights, which takes the step as an input and gathers what changes with
    it; or "constant", one graph for all steps of equal parameters, in which every scale is a constant and no int8
    weight has a zero point: what OpenVINO needs to compute in integers.

    weight_type: of 8-bit weights of layers with 8-bit activations. "uint8" is exact in every session; "int8" is what
    VNNI, phones and OpenVINO's integer kernels need, and saturates on x86 without VNNI unless the session is told
    otherwise. None: uint8 for gather, int8 for constant. All other weights are int8 and saturate nowhere. Raises
    UserError for other values.
    """

    name, version = KIND, VERSION

    def __init__(self, *, path: str | None = None, steps: str = "gather", weight_type: str | None = None) -> None:
        super().__init__(path=path)
        if steps not in STEPS:
            raise UserError(f"export.steps={steps} must be one of {', '.join(STEPS)}")
        if weight_type not in (UINT8, INT8, None):
            raise UserError(f"export.weight_type={weight_type} must be {UINT8}, {INT8} or null")
        self.steps, self.asked_type = steps, weight_type
        self.weight_type = weight_type or (UINT8 if steps == "gather" else INT8)

    @property
    def choices(self) -> dict[str, Any]:
        return {"steps": self.steps, "weight_type": self.weight_type}

    def check(self, method: Method, sampler: Sampler, backend: Backend) -> None:
        if not method.quantizes:
            raise UserError("export=onnx_qdq exports quantized models, quant=fp16 quantizes nothing")
        if not method.static:
            raise UserError(
                f"export=onnx_qdq cannot export {type(method).__name__}: its ranges are measured at run time, a QDQ "
                "graph holds constants; static methods are allowed"
            )
        for field in ("weight", "act"):
            bits = getattr(method, f"{field}_bits")
            if bits > BITS:
                raise UserError(f"export=onnx_qdq: bits.{field}={bits} must be at most {BITS}, products are of bytes")
        require("export=onnx_qdq", "export", *PACKAGES)
        from vdq.export.onnx_linear import OnnxBackend

        OnnxBackend().check_parts(method.parts())

    def check_model(self, model: VideoModel) -> None:
        if model.family.name not in FAMILIES:
            raise UserError(f"export=onnx_qdq knows {', '.join(FAMILIES)}, not {model.family.name}")

    def write(self, run: QuantizedRun, folder: Path) -> dict[str, Any]:
        # Not with this module, which is imported wherever the options of `export` are listed.
        from vdq.export.onnx_linear import OnnxBackend, saturates

        saturating = any(map(saturates, run.state.layers.values()))
        if self.asked_type == UINT8 and not saturating:
            raise UserError("export.weight_type=uint8 does nothing: it is for 8-bit weights with 8-bit activations")
        if saturating:
            log.info("export: 8-bit weights as %s: %s", self.weight_type, NOTES[self.weight_type])
        quantized = apply(run.denoiser, run.state, StepClock(run.state.num_steps), OnnxBackend()).float()
        write = self._write_stdit if isinstance(run.denoiser, STDiT) else self._write_transformers
        contents = {
            "num_steps": run.state.num_steps,
            **write(run, quantized, folder),
            **self.choices,
            "latent_shape": run.model.latent_shape and list(run.model.latent_shape),
            "fps": run.model.fps,
            "seed": run.config["seed"],
            "quantized_layers": len(run.state.layers),
            "config": {group: run.config[group] for group in GROUPS},
            "companions": run.model.companions,
        }
        make_card = card if isinstance(run.denoiser, STDiT) else transformer_card
        write_text(folder / "README.md", make_card(run, contents, saturating=saturating))
        return contents

    def _write_stdit(self, run: QuantizedRun, quantized: nn.Module, folder: Path) -> dict[str, Any]:
        from vdq.export.onnx_graph import traced

        graphs = self._write_graphs(traced(quantized), quantized, folder)
        with complete_or_nothing(folder / NULL_CAPTION) as partial:
            save_file({"y_embedding": run.denoiser.y_embedder.y_embedding.detach().clone()}, partial)
        return {"graphs": graphs}

    def _write_transformers(self, run: QuantizedRun, quantized: nn.Module, folder: Path) -> dict[str, Any]:
        """Writes each to a folder of its own where there are several; a step has the graph of the one at work."""
        from vdq.export.onnx_calls import TensorCall, first_call, fixed_of, tensors_of
        from vdq.export.onnx_graph import traced_call

        call, graphs = first_call(run.model, run.prompt, run.sampler), []
        inputs, windows = tensors_of(call), run.model.windows(run.sampler)
        for name, net in transformers(run.model, quantized).items():
            place = name if len(windows) > 1 else ""
            (folder / place).mkdir(exist_ok=True)
            template = traced_call(TensorCall(net, call), inputs)
            files = self._write_graphs(template, net, folder / place, windows[name])
            graphs += [f"{place}/{file}" if place else file for file in files]
        shapes = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in inputs.items()}
        return {"graphs": graphs, "inputs": shapes, "fixed": fixed_of(call)}

    def _write_graphs(
        self, template: Any, quantized: nn.Module, folder: Path, window: range | None = None
    ) -> list[str]:
        """Returns the graph of every step of the window, after a check that it multiplies all layers in integers."""
        from vdq.export.onnx_graph import layer_specs, write_graphs
        from vdq.export.onnx_kernels import check_integer

        layers = layer_specs(quantized)
        form = {"constant": self.steps == "constant", "unsigned": self.weight_type == UINT8}
        graphs = write_graphs(template, layers, folder, **form, window=window)
        for name in dict.fromkeys(graphs):
            check_integer(folder / name, layers)
        return graphs
