"""What quantization decides: a LayerQuant of every quantized layer, saved as one safetensors file."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vdq.diffusion.timesteps import NEAREST, Distance, Timesteps, described, distance, nearest, same
from vdq.errors import UserError
from vdq.quant import storage
from vdq.quant.layer_quant import LayerQuant

KIND, LAYOUT = "vdq.quant_state", 2  # of the file
# To be raised when this package gives other parameters or another product; Method.version is the method's own.
VERSION = 1


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer of the model. kind: static, dynamic or full_precision. weight_error: relative L2 error
    of the quantized weight, rotation and smoothing undone, over all ranges. act_range_spread: widest range of one step
    / narrowest, after shift and smoothing; 1 is constant in time. Both are None where unknown. reason: why the layer
    stays in full precision. mean_act_bits: over the steps. act_groups: of tokens, 0 if dynamic. rotation: block size.
    bits_per_weight: codes with all that the layer needs beside them. per_branch: whether each branch of guidance has
    act_ranges of its own. kept_steps: at which the layer is the original. stored: what stands for several weight sets
    in a file, and why.
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
    per_branch: bool = False
    kept_steps: tuple[int, ...] = ()
    stored: str = ""


@dataclass(frozen=True, eq=False)
class QuantState:
    """The quantization of layers by fqn for a model sampled in `num_steps` steps, and one report row per layer of the
    model. At `kept_steps` every layer is the original one (vdq.quant.keep).

    Quantized weights are not held where they follow exactly from the model's weights and these parameters
    (LayerQuant.weight_codes): K sets of codes would be K times the model. An empty `layers` is the full-precision
    model. timesteps: those of the steps, None where they are not known. calibrated: of every step the timestep that its
    parameters are of, where that is another (`serving`); None where it is its own.
    """

    layers: dict[str, LayerQuant]
    num_steps: int
    report: tuple[LayerReport, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    timesteps: Timesteps | None = None
    calibrated: Timesteps | None = None
    kept_steps: tuple[int, ...] = ()

    def serving(self, timesteps: Timesteps, match: str | None = None) -> "QuantState":
        """The state for a sampler with these timesteps, which must be its own, unless `match` is "nearest": then each
        step has the parameters of the nearest timestep that there are some of. Raises UserError naming both schedules
        where they differ, for a match that would do nothing, and for one where the state's own are not known.
        """
        if self.timesteps is None:
            if match is not None:
                raise UserError(f"match={match} needs the timesteps of the parameters; export them again")
            return self
        ours, its = described(self.timesteps), described(timesteps)
        if same(self.timesteps, timesteps):
            if match is not None:
                raise UserError(f"match={match} has no effect: parameters and sampler have the same schedule, {ours}")
            return self
        if match is None:
            raise UserError(
                f"the parameters are for {ours}, the sampler has {its}; match={NEAREST} takes for every step those of "
                "the nearest timestep, which costs quality"
            )
        known = self.calibrated or self.timesteps
        steps = nearest(timesteps, known)
        layers = {fqn: quant.picked(steps) for fqn, quant in self.layers.items()}
        calibrated = tuple(known[step] for step in steps)
        kept = tuple(number for number, step in enumerate(steps) if step in self.kept_steps)
        times = {"num_steps": len(timesteps), "timesteps": timesteps, "calibrated": calibrated}
        return replace(self, layers=layers, report=(), kept_steps=kept, **times)

    @property
    def distance(self) -> Distance | None:
        """How far the steps are from the timesteps that their parameters are of; None where that is nothing."""
        return None if self.calibrated is None else distance(self.timesteps, self.calibrated)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {f"{fqn}.{name}": t for fqn, quant in self.layers.items() for name, t in quant.tensors().items()}
        header = {
            "layers": {fqn: quant.description() for fqn, quant in self.layers.items()},
            "num_steps": self.num_steps,
            "report": [asdict(row) for row in self.report],
            "metadata": self.metadata,
            "kept_steps": self.kept_steps,
            "timesteps": self.timesteps,
            "calibrated": self.calibrated,
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
        times = {name: header.get(name) and tuple(header[name]) for name in ("timesteps", "calibrated")}
        kept = tuple(header.get("kept_steps", ()))  # files of before have none
        return cls(layers, header["num_steps"], report, header["metadata"], **times, kept_steps=kept)


def _row(written: dict[str, Any]) -> LayerReport:
    tuples = {name: tuple(written.get(name, ())) for name in ("shape", "kept_steps")}
    return LayerReport(**written | tuples)
