"""The parameters of one quantized linear layer."""

from dataclasses import dataclass, replace
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from vdq.quant.affine import QParams, code_range, dequantize, fake_quantize, quantize
from vdq.quant.coded import pack_codes, unpack_codes
from vdq.quant.low_rank import LowRank
from vdq.quant.rotation import hadamard
from vdq.quant.transform import transform_input, transform_weight, video_rows

CODES = "weight_codes"
SCALARS = (
    "weight_bits",
    "act_bits",
    "symmetric_weights",
    "symmetric_acts",
    "act_granularity",
    "act_block",
    "high_bits",
    "delta",
    "rotation",
    "folded",
    "out_rotation",
)
_TENSORS = ("weight_range", "act_range", "smoothing", "shift", "correction", "step_bits", "act_group")
_PAIRS = {
    "weight": ("weight_scale", "weight_zero_point"),
    "act": ("act_scale", "act_zero_point"),
    "codebook": ("codebook_levels", "codebook_edges"),
    "low_rank": ("low_rank_down", "low_rank_up"),
}


class Codebook(NamedTuple):
    """A non-uniform quantizer: levels fp32 [L], ascending, and edges fp32 [L - 1] between them."""

    levels: Tensor
    edges: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The level of every value, fp32 of the shape of x; a value on an edge takes the lower level."""
        return self.levels[torch.bucketize(x.float(), self.edges)]


_PAIR_TYPES = {"codebook": Codebook, "low_rank": LowRank}


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearParams:
    """Quantization of one linear layer over N steps with Kw weight ranges and Ka activation ranges.

    The layer computes quantize(x') What^T + correction + bias of x' = rotate((x - shift) / s); What has the codes of
    rotate(W s), so that without rounding the product is that of x and W (vdq.quant.transform). With low_rank, whose
    product with x' is added in floating point, What has the codes of what that leaves of rotate(W s).

    weight: qparams [Kw, out, 1] of W s, rotated. weight_range: long [N], step -> 0..Kw-1, also the range of s.
    codes: uint8 [Kw, bytes], the codes of every weight range packed (vdq.quant.bit_packing), or None where they follow
    from rounding. They stay on the host, may be memory-mapped, and are only read; of the weight that methods take, its
    shape, dtype and device are then all that is used.

    act: qparams [Ka] of x', or None when they are computed at run time per `act_granularity`. act_range: long [N], step
    -> 0..Ka-1, or None. step_bits: long [N], the bits of every step, or None for `act_bits`, which is the largest of
    them. act_group: long [R], or None; then act is [Ka, G], and row r of a video's R token rows, in the order in which
    the layer gets them, belongs to group act_group[r]. codebook: static levels of x' in place of act; simulated only.

    smoothing: s [Kw, in] fp32, or None (then Kw = 1). shift [Ka, in] and correction [Ka, out], fp32, fp16 or None, are
    of the activation range of a step, or of its weight range where there is no act_range. rotation: block size of the
    normalized Hadamard transform of the channels, 0 for none. folded: x arrives rotated, as the layer before has it
    for its out_rotation, the block of a rotation of the output, 0 for none (vdq.methods.static_plus.folding).

    act_granularity "per_video": a scale for each row of the denoiser's batch and `act_block` consecutive channels
    (vdq.quant.video_scales). high_bits, delta: of a dynamic layer whose videos have high_bits at some steps and
    act_bits at the others, as vdq.quant.bit_switch decides while sampling; None for act_bits at all steps.

    Raises ValueError for act together with a codebook, when act_bits is not the largest of step_bits, when shift or
    correction lack the row of a range, for groups that are not 0..G-1, for a low_rank without codes, and for
    smoothing of a folded layer.
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
    act_block: int = 1
    high_bits: int | None = None
    delta: float | None = None
    codes: Tensor | None = None
    shift: Tensor | None = None
    rotation: int = 0
    correction: Tensor | None = None
    step_bits: Tensor | None = None
    act_group: Tensor | None = None
    codebook: Codebook | None = None
    low_rank: LowRank | None = None
    folded: bool = False
    out_rotation: int = 0

    def __post_init__(self) -> None:
        if self.act is not None and self.codebook is not None:
            raise ValueError("act and codebook are both given, a static layer has one of them")
        if self.low_rank is not None and self.codes is None and not self.low_rank.up.is_meta:
            raise ValueError("low_rank needs codes, those of what it leaves of the weight")
        if self.folded and self.smoothing is not None:
            raise ValueError("smoothing comes before the rotation, which a folded layer leaves to the one before")
        if self.step_bits is not None and not self.step_bits.is_meta and int(self.step_bits.max()) != self.act_bits:
            raise ValueError(f"act_bits={self.act_bits} must be the largest of step_bits, {int(self.step_bits.max())}")
        for name in ("shift", "correction"):
            table = getattr(self, name)
            if table is not None and not table.is_meta and (last := int(self.table_range.max())) >= len(table):
                raise ValueError(f"{name} has {len(table)} rows, must have one for each of the ranges 0..{last}")
        if self.act_group is not None:
            self._check_groups()

    def _check_groups(self) -> None:
        if self.act is None:
            raise ValueError("act_group needs act, the qparams of its groups")
        groups = self.act.scale.shape[-1] if self.act.scale.dim() == 2 else 0
        if not (self.act_group.is_meta or 0 <= int(self.act_group.min()) <= int(self.act_group.max()) < groups):
            raise ValueError(f"act_group has values outside 0..{groups - 1}, the groups of act")

    def __deepcopy__(self, memo: dict) -> "LinearParams":
        return self  # only read

    def to(self, device: torch.device | str) -> "LinearParams":
        """The same parameters on another device, codes where they are."""
        tensors = {name: t if name == CODES else t.to(device) for name, t in self.tensors().items()}
        return LinearParams.from_tensors(tensors, self.scalars())

    @property
    def static(self) -> bool:
        """Whether the activation quantizer is fixed before sampling."""
        return self.act is not None or self.codebook is not None

    @property
    def transforms(self) -> bool:
        """Whether a layer does more than smooth, quantize and multiply: TransformedLinear does it around the layer."""
        added = (self.shift, self.correction, self.low_rank)
        return bool(self.rotation) or any(part is not None for part in added)

    @property
    def kinds(self) -> frozenset[str]:
        """Names of the parts that the layer is made of, by which a backend says what it runs."""
        granularity = "static" if self.act_granularity == "per_tensor" else self.act_granularity
        act = "codebook" if self.codebook is not None else granularity
        found = {
            "affine": True,
            "stored_codes": self.codes is not None,
            act: True,
            "step_bits": self.step_bits is not None,
            "token_groups": self.act_group is not None,
            "bit_switch": self.high_bits is not None,
            "smoothing": self.smoothing is not None,
            "shift": self.shift is not None,
            "rotation": bool(self.rotation),
            "low_rank": self.low_rank is not None,
            "correction": self.correction is not None,
        }
        return frozenset(kind for kind, present in found.items() if present)

    @property
    def num_steps(self) -> int:
        return len(self.weight_range)

    @property
    def num_weight_ranges(self) -> int:
        return len(self.weight.scale)

    @property
    def num_act_ranges(self) -> int:
        """Of a static layer; 0 if dynamic, 1 with a codebook."""
        return int(self.codebook is not None) if self.act is None else len(self.act.scale)

    @property
    def num_act_groups(self) -> int:
        """Groups of tokens with qparams of their own, of a static layer; 0 if dynamic."""
        return self.act.scale.shape[1] if self.act_group is not None else int(self.static)

    @property
    def table_range(self) -> Tensor:
        """long [N]: the row of `shift` and `correction` of every step."""
        return self.weight_range if self.act_range is None else self.act_range

    @property
    def smooths_outside(self) -> bool:
        """Whether what comes after smoothing, and before quantization, needs x / s itself."""
        return bool(self.rotation) or self.low_rank is not None

    def resolved(self, weight: Tensor) -> "LinearParams":
        """The same layer told without folds, as it gets its input and has to give its output: weight [out, in]."""
        if not (self.folded or self.out_rotation):
            return self
        codes = self.packed_codes(weight)
        if not self.folded:
            return replace(self, codes=codes, out_rotation=0)
        shift = None if self.shift is None else hadamard(self.shift.float(), self.rotation)
        return replace(self, codes=codes, out_rotation=0, folded=False, rotation=0, shift=shift)

    def plain(self, weight: Tensor) -> "LinearParams":
        """The parameters that are left when shift, rotation, correction and low_rank happen outside of the layer, and
        with rotation the smoothing before it: weight [out, in].
        """
        plain = replace(self, shift=None, correction=None, low_rank=None)
        if not self.smooths_outside:
            return plain
        return replace(plain, smoothing=None, rotation=0, codes=self.packed_codes(weight))

    def weight_qparams(self, range_: int) -> QParams:
        """Those of one range, each [out, 1] fp32."""
        return QParams(self.weight.scale[range_], self.weight.zero_point[range_])

    def weight_codes(self, weight: Tensor, range_: int) -> Tensor:
        """Codes of one range: weight [out, in] -> [out, in], integers held in fp32."""
        if self.codes is not None:
            return unpack_codes(self.codes[range_], weight, **self._weight_format)
        transformed = transform_weight(weight, self.range_smoothing(range_), self.rotation, self.out_rotation)
        return quantize(transformed, self.weight_qparams(range_), **self._weight_format)

    def packed_codes(self, weight: Tensor) -> Tensor:
        """`codes`, stored or made from the weight [out, in], on the CPU: one range at a time is worked on."""
        if self.codes is not None:
            return self.codes
        return pack_codes((self.weight_codes(weight, r) for r in range(self.num_weight_ranges)), **self._weight_format)

    def dequantized_weight(self, weight: Tensor, range_: int) -> Tensor:
        """The weight that multiplies the quantized x' in one range: weight [out, in] -> [out, in] fp32."""
        return dequantize(self.weight_codes(weight, range_), self.weight_qparams(range_))

    def range_smoothing(self, range_: int) -> Tensor | None:
        """s [in] of one weight range, or None."""
        return None if self.smoothing is None else self.smoothing[range_]

    def step_smoothing(self) -> Tensor | None:
        """s of every step, [N, in] fp32, or None."""
        return None if self.smoothing is None else self.smoothing[self.weight_range]

    def step_shift(self) -> Tensor | None:
        """Shift of every step, [N, in] fp32, or None."""
        return None if self.shift is None else self.shift[self.table_range].float()

    def step_correction(self) -> Tensor | None:
        """Correction of every step, [N, out] fp32, or None."""
        return None if self.correction is None else self.correction[self.table_range].float()

    def step_act(self) -> QParams:
        """Activation qparams of every step, each [N] or [N, G] fp32."""
        return QParams(self.act.scale[self.act_range], self.act.zero_point[self.act_range])

    @property
    def mean_act_bits(self) -> float | None:
        """Over the steps; None if they are chosen while sampling."""
        return None if self.high_bits is not None else mean(self.act_bits_of_steps())

    def act_bits_of_steps(self) -> list[int]:
        """Activation bits of every step."""
        return [self.act_bits] * self.num_steps if self.step_bits is None else self.step_bits.tolist()

    def step_code_range(self) -> tuple[Tensor, Tensor]:
        """First and last activation code of every step, whole numbers, each [N] fp32."""
        bounds = [code_range(bits, self.symmetric_acts) for bits in self.act_bits_of_steps()]
        return torch.tensor(bounds, dtype=torch.float32, device=self.weight_range.device).unbind(1)

    def transform_input(self, x: Tensor, step: int) -> Tensor:
        """x' of a step: x [..., in], not rotated even where the layer is folded -> [..., in] fp32."""
        shift = None if self.shift is None else self.shift[self.table_range[step]]
        return transform_input(x, shift, self.range_smoothing(self.weight_range[step]), self.rotation)

    def fake_quantize_act(self, transformed: Tensor, step: int) -> Tensor:
        """x' of a step quantized and dequantized, of a static layer: [..., in] -> [..., in] fp32.

        Raises ValueError when the rows are not whole videos and tokens have groups.
        """
        if self.codebook is not None:
            return self.codebook(transformed)
        act = QParams(*(values[self.act_range[step]] for values in self.act))
        rows = transformed
        if self.act_group is not None:
            act = QParams(*(values[self.act_group, None] for values in act))
            rows = video_rows(transformed, len(self.act_group))
        bits = self.act_bits_of_steps()[step]
        return fake_quantize(rows, act, bits=bits, symmetric=self.symmetric_acts).reshape(transformed.shape)

    def variants(self) -> list[int]:
        """One number a step; steps have the same number when all their parameters are equal in value, whatever their
        ranges: the layer is then the same function of its input. A layer whose input does not change over time is
        calibrated to equal ranges.
        """
        values = [self._weight_variants()[self.weight_range][:, None]]
        values += [table[self.table_range] for table in (self.shift, self.correction) if table is not None]
        values += [tensor.flatten(1) for tensor in self._act_tables()]
        return torch.cat(values, 1).unique(dim=0, return_inverse=True)[1].tolist()

    def _act_tables(self) -> list[Tensor]:
        """What decides the activation quantizer of every step, each [N, ...]."""
        tables = [] if self.act is None else [values.unsqueeze(-1) for values in self.step_act()]
        return tables if self.step_bits is None else [*tables, self.step_bits[:, None]]

    def _weight_variants(self) -> Tensor:
        """One number a weight range, the same for ranges of equal qparams, smoothing and codes: [Kw]."""
        own = [*self.weight, *([] if self.smoothing is None else [self.smoothing])]
        numbers = torch.cat([tensor.flatten(1) for tensor in own], 1).unique(dim=0, return_inverse=True)[1]
        if self.codes is None:
            return numbers
        first: list[int] = []  # the first range of equal parameters and codes, of every range
        for range_, number in enumerate(numbers.tolist()):
            candidates = [k for k in range(range_) if first[k] == k and numbers[k] == number]
            first.append(next((k for k in candidates if torch.equal(self.codes[k], self.codes[range_])), range_))
        return torch.tensor(first, device=numbers.device)

    @property
    def _weight_format(self) -> dict[str, int | bool]:
        return {"bits": self.weight_bits, "symmetric": self.symmetric_weights}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, as saved."""
        named = {name: getattr(self, name) for name in _TENSORS} | {CODES: self.codes}
        for field, names in _PAIRS.items():
            named |= zip(names, getattr(self, field) or (None, None), strict=True)
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def scalars(self) -> dict[str, int | bool | str]:
        """Everything that is not a tensor, by name."""
        return {name: getattr(self, name) for name in SCALARS}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], scalars: dict) -> "LinearParams":
        """Inverse of `tensors` and `scalars`."""
        fields = {name: tensors.get(name) for name in _TENSORS} | {"codes": tensors.get(CODES)}
        for field, names in _PAIRS.items():
            kind = _PAIR_TYPES.get(field, QParams)
            fields[field] = kind(*(tensors[name] for name in names)) if names[0] in tensors else None
        return cls(**fields, **scalars)
