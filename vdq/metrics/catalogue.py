"""What the values of metrics are called, and how they are printed and compared.

A metric lists its values on its class, and every result carries what the class says, so a table needs no metric's code.
The values of this repository's own metrics stand here, where reports can name them without loading a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Value:
    """One value that a metric has for every video and for the set.

    Attributes:
        name: of its column in results, such as "psnr".
        title: for people; the name where none is given.
        digits: after the decimal point in tables.
        higher_is_better: its direction.
        unit: such as "dB"; empty for none.
        fidelity: whether it compares a video with the full-precision one of the same prompt and noise, so that its mean
            and not the mean's difference to full precision is what counts.
        share: whether a video has 0 or 1, so that the mean is a share.
    """

    name: str
    title: str = ""
    digits: int = 4
    higher_is_better: bool = True
    unit: str = ""
    fidelity: bool = False
    share: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title} {self.unit}".strip()

    @property
    def heading(self) -> str:
        """Title, unit and an arrow that points to what is better."""
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"

    @property
    def axis(self) -> str:
        """The label of a figure's axis."""
        compared = f"{self.title} to full precision" if self.fidelity else self.title
        return f"{compared}, {self.unit}" if self.unit else compared

    def text(self, number: float | None, sign: str = "") -> str:
        """A number with this value's digits, a dash for None and NaN; sign "+" shows the plus as well."""
        return "–" if number is None or math.isnan(number) else f"{number:{sign}.{self.digits}f}"

    def labelled(self, label: str) -> Value:
        """The same value as another network gives it, `<name>_<label>`; itself without a label."""
        if not label:
            return self
        return replace(self, name=f"{self.name}_{label}", title=f"{self.title} ({label})")


CLIPSIM = Value("clipsim", "CLIPSIM")
CLIP_TEMP = Value("clip_temp", "CLIP-temp")
VQA_A = Value("vqa_a", "VQA-a", digits=2)
VQA_T = Value("vqa_t", "VQA-t", digits=2)
TOP1 = Value("top1", "top-1", digits=3, share=True)
PSNR = Value("psnr", "PSNR", digits=2, unit="dB", fidelity=True)
SSIM = Value("ssim", "SSIM", fidelity=True)
LPIPS = Value("lpips", "LPIPS", higher_is_better=False, fidelity=True)
LATENT_L2 = Value("latent_rel_l2", "latent L2", higher_is_better=False, fidelity=True)
FVD = Value("fvd", "FVD", digits=1, higher_is_better=False)
FVD_FP16 = Value("fvd_fp16", "FVD-FP16", digits=1, higher_is_better=False, fidelity=True)

CATALOGUE = {
    value.name: value for value in (CLIPSIM, CLIP_TEMP, VQA_A, VQA_T, TOP1, PSNR, SSIM, LPIPS, LATENT_L2, FVD, FVD_FP16)
}


def value_named(name: str) -> Value:
    """The value of this name, also that of a labelled metric; what is unknown keeps its name as the title."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    bases = [value for value in CATALOGUE.values() if name.startswith(f"{value.name}_")]
    if not bases:
        return Value(name)
    base = max(bases, key=lambda value: len(value.name))
    return base.labelled(name.removeprefix(f"{base.name}_"))


def described(values: Iterable[Value]) -> dict[str, dict[str, Any]]:
    """What a result says of its values, as JSON can hold it."""
    return {value.name: asdict(value) for value in values}


def values_of(results: Iterable[Mapping[str, Any]]) -> dict[str, Value]:
    """The values that results have, by name in the order of the results.

    Results of earlier versions say the direction alone, in `higher_is_better`; the catalogue knows the rest.
    """
    found: dict[str, Value] = {}
    for result in results:
        if isinstance(fields := result.get("described"), Mapping):
            found |= {name: Value(**each) for name, each in fields.items()}
        elif isinstance(directions := result.get("higher_is_better"), Mapping):
            found |= {name: replace(value_named(name), higher_is_better=up) for name, up in directions.items()}
    return found
