"""What quantization decides: a LayerQuant of every quantized layer, saved as one safetensors file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vdq.quant import storage
from vdq.quant.layer_quant import LayerQuant

KIND, LAYOUT = "vdq.quant_state", 2  # of the file
# To be raised when this package gives other parameters or another product; Method.version is the method's own.
VERSION = 1


@dataclass(frozen=True)
class LayerReport:
    """One layer of the model. kind: static, dynamic or full_precision. weight_error: relative L2 error of the
    quantized weight, rotation and smoothing undone, over all ranges. act_range_spread: widest range of one step /
    narrowest, after shift and smoothing; 1 is constant in time. Both are None where unknown. reason: why the layer
    stays in full precision. mean_act_bits: over the steps. act_groups: of tokens, 0 if dynamic. rotation: block size.
    bits_per_weight: codes with all that the layer needs beside them. kept_steps: at which the layer is the original.
    stored: what stands for several weight sets in a file, and why.
    """

    fqn: str
    shape: tuple[int, ...]
    kind: str
    weight_bits: int | None = None
    act_bits: int | None = None
    weight_ranges: int = 0
    act_ranges: int = 0
    weight_error: float | None = None
    act_range_spread: float | None = None
    reason: str = ""
    mean_act_bits: float | None = None
    act_groups: int = 0
    rotation: int = 0
    bits_per_weight: float | None = None
    kept_steps: tuple[int, ...] = ()
    stored: str = ""


@dataclass(frozen=True, eq=False)
class QuantState:
    """The quantization of layers by fqn for a model sampled in `num_steps` steps, and one report row per layer of the
    model. At `kept_steps` every layer is the original one (vdq.quant.keep).

    Quantized weights are not held where they follow exactly from the model's weights and these parameters
    (LayerQuant.weight_codes): K sets of codes would be K times the model. An empty `layers` is the full-precision
    model.
    """

    layers: dict[str, LayerQuant]
    num_steps: int
    report: tuple[LayerReport, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    kept_steps: tuple[int, ...] = ()

    def save(self, path: str | Path) -> None:
        """One safetensors file, written atomically."""
        tensors = {f"{fqn}.{name}": t for fqn, quant in self.layers.items() for name, t in quant.tensors().items()}
        header = {
            "layers": {fqn: quant.description() for fqn, quant in self.layers.items()},
            "num_steps": self.num_steps,
            "report": [asdict(row) for row in self.report],
            "metadata": self.metadata,
            "kept_steps": self.kept_steps,
        }
        storage.save(path, tensors, header, kind=KIND, layout=LAYOUT)

    @classmethod
    def load(cls, path: str | Path) -> "QuantState":
        """Raises UserError when the file holds something else, or has another layout."""
        tensors, header = storage.load(path, kind=KIND, layout=LAYOUT)
        named: dict[str, dict[str, Tensor]] = {fqn: {} for fqn in header["layers"]}
        for full_name, tensor in tensors.items():
            fqn, kind, name = full_name.rsplit(".", 2)
            named[fqn][f"{kind}.{name}"] = tensor
        layers = {fqn: LayerQuant.restored(parts, named[fqn]) for fqn, parts in header["layers"].items()}
        report = tuple(_row(row) for row in header["report"])
        kept = tuple(header.get("kept_steps", ()))  # files of before have none
        return cls(layers, header["num_steps"], report, header["metadata"], kept)


def _row(written: dict[str, Any]) -> LayerReport:
    tuples = {name: tuple(written.get(name, ())) for name in ("shape", "kept_steps")}
    return LayerReport(**written | tuples)
