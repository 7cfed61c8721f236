"""What quantization decides: the parameters of every quantized layer, saved as one safetensors file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vdq.quant import storage
from vdq.quant.affine import QParams, dequantize, quantize

KIND = "vdq.quant_state"
_SCALARS = ("weight_bits", "act_bits", "symmetric_weights", "symmetric_acts", "act_granularity")


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearParams:
    """Quantization of one linear layer over N steps with Kw weight ranges and Ka activation ranges.

    smoothing: s [Kw, in] fp32, or None (then Kw = 1). weight: qparams [Kw, out, 1] of W * s. weight_range: long [N],
    step -> 0..Kw-1, also the range of s. act: qparams [Ka] of X / s, or None when they are computed at run time per
    `act_granularity`. act_range: long [N], step -> 0..Ka-1, or None.
    """

    weight_bits: int
    act_bits: int
    weight: QParams
    weight_range: Tensor
    act: QParams | None = None
    act_range: Tensor | None = None
    smoothing: Tensor | None = None
    symmetric_weights: bool = False
    symmetric_acts: bool = False
    act_granularity: str = "per_tensor"

    def to(self, device: torch.device | str) -> "LinearParams":
        """The same parameters on another device."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return LinearParams.from_tensors(tensors, self.scalars())

    @property
    def static(self) -> bool:
        """Whether the activation qparams are fixed before sampling."""
        return self.act is not None

    @property
    def num_steps(self) -> int:
        return len(self.weight_range)

    @property
    def num_weight_ranges(self) -> int:
        return len(self.weight.scale)

    def weight_qparams(self, range_: int) -> QParams:
        """Those of one range, each [out, 1] fp32."""
        return QParams(self.weight.scale[range_], self.weight.zero_point[range_])

    def weight_codes(self, weight: Tensor, range_: int) -> Tensor:
        """Codes of W * s of one range: weight [out, in] -> [out, in], integers held in fp32."""
        s = None if self.smoothing is None else self.smoothing[range_]
        return quantize(smooth_weight(weight, s), self.weight_qparams(range_), **self._weight_format)

    def dequantized_weight(self, weight: Tensor, range_: int) -> Tensor:
        """The weight that multiplies X / s in one range: weight [out, in] -> [out, in] fp32."""
        return dequantize(self.weight_codes(weight, range_), self.weight_qparams(range_))

    def step_smoothing(self) -> Tensor | None:
        """s of every step, [N, in] fp32, or None."""
        return None if self.smoothing is None else self.smoothing[self.weight_range]

    def step_act(self) -> QParams:
        """Activation qparams of every step, each [N] fp32."""
        return QParams(self.act.scale[self.act_range], self.act.zero_point[self.act_range])

    def variants(self) -> list[int]:
        """One number a step; steps have the same number when all their parameters are equal in value, whatever their
        ranges: the layer is then the same function of its input. A layer whose input does not change over time is
        calibrated to equal ranges.
        """
        own = [*self.weight, *([] if self.smoothing is None else [self.smoothing])]
        values = [tensor[self.weight_range].flatten(1) for tensor in own]
        values += [tensor[:, None] for tensor in self.step_act()] if self.static else []
        return torch.cat(values, 1).unique(dim=0, return_inverse=True)[1].tolist()

    @property
    def _weight_format(self) -> dict[str, int | bool]:
        return {"bits": self.weight_bits, "symmetric": self.symmetric_weights}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, as saved."""
        named = {
            "weight_scale": self.weight.scale,
            "weight_zero_point": self.weight.zero_point,
            "weight_range": self.weight_range,
            "act_scale": self.act.scale if self.static else None,
            "act_zero_point": self.act.zero_point if self.static else None,
            "act_range": self.act_range,
            "smoothing": self.smoothing,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def scalars(self) -> dict[str, int | bool | str]:
        """Everything that is not a tensor, by name."""
        return {name: getattr(self, name) for name in _SCALARS}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], scalars: dict) -> "LinearParams":
        """Inverse of `tensors` and `scalars`."""
        return cls(
            weight=QParams(tensors["weight_scale"], tensors["weight_zero_point"]),
            weight_range=tensors["weight_range"],
            act=QParams(tensors["act_scale"], tensors["act_zero_point"]) if "act_scale" in tensors else None,
            act_range=tensors.get("act_range"),
            smoothing=tensors.get("smoothing"),
            **scalars,
        )


def smooth_weight(weight: Tensor, smoothing: Tensor | None) -> Tensor:
    """W * s in fp32 (paper Eq. 2): weight [out, in], smoothing [in] of one range or None -> [out, in]."""
    weight = weight.detach().float()
    return weight if smoothing is None else weight * smoothing


@dataclass(frozen=True)
class LayerReport:
    """One layer of the model. kind: static, dynamic or full_precision. weight_error: relative L2 error of the
    quantized weight, smoothing undone, over all ranges. act_range_spread: widest range of one step / narrowest, after
    smoothing; 1 is constant in time. Both are None where unknown. reason: why the layer stays in full precision.
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


@dataclass(frozen=True, eq=False)
class QuantState:
    """Parameters by fqn for a model sampled in `num_steps` steps, and one report row per layer of the model.

    Quantized weights are not held: they follow exactly from the model's weights and these parameters
    (LinearParams.weight_codes), and K ranges of codes would be K times the model. An empty `layers` is the
    full-precision model.
    """

    layers: dict[str, LinearParams]
    num_steps: int
    report: tuple[LayerReport, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """One safetensors file, written atomically."""
        tensors = {f"{fqn}.{name}": t for fqn, params in self.layers.items() for name, t in params.tensors().items()}
        header = {
            "layers": {fqn: params.scalars() for fqn, params in self.layers.items()},
            "num_steps": self.num_steps,
            "report": [asdict(row) for row in self.report],
            "metadata": self.metadata,
        }
        storage.save(path, tensors, header, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> "QuantState":
        """Raises ValueError when the file holds something else."""
        tensors, header = storage.load(path, kind=KIND)
        named: dict[str, dict[str, Tensor]] = {fqn: {} for fqn in header["layers"]}
        for full_name, tensor in tensors.items():
            fqn, _, name = full_name.rpartition(".")
            named[fqn][name] = tensor
        layers = {fqn: LinearParams.from_tensors(named[fqn], scalars) for fqn, scalars in header["layers"].items()}
        report = tuple(LayerReport(**{**row, "shape": tuple(row["shape"])}) for row in header["report"])
        return cls(layers, header["num_steps"], report, header["metadata"])
