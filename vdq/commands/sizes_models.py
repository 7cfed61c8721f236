"""Sizes of the named models under every method, from structure alone: ``python -m vdq.commands.sizes_models FILE``.

Nothing is downloaded and no weight is read.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vdq.commands.sizes import planned_on
from vdq.files import write_text
from vdq.installation import CONF
from vdq.models.base import RANDOM
from vdq.quant.report import ModelSize, model_size
from vdq.reports.text import markdown
from vdq.stages.configuration import options
from vdq.stages.experiment import Experiment

NOT_NAMED = {"diffusers", "opensora_v1_256", "shapes"}  # any model; the layers of another size; one that ships
BITS = ("w8a8", "w4a8")
ALIKE = 0.01
TEXT = """# Sizes of published models, quantized

GB (1e9 bytes) of the denoiser, from its structure alone; in brackets how many times smaller that is than the model in
fp32 and in half precision, in which it is published. What is not quantized is in half precision. Methods that differ
by less than {alike:.0%} in every model share a column, which has the largest of them. Written by
`python -m vdq.commands.sizes_models`.

{tables}

A method with several weight sets is stored as the original weights and smoothing factors where that takes less than the
codes of all sets, layer by layer; each set of codes is then made when its steps come. The last column has the codes of
all sets. The original weights are 16 bits each, so such an artefact is as large as the model: it saves no memory, but
what the integer products take.
"""


def overrides(name: str) -> list[str]:
    """What makes a named model without its weights."""
    model = composed(f"model={name}").model
    if "pretrained" in model:
        return [f"model={name}", f"model.pretrained={RANDOM}"]
    parts = model.weights if OmegaConf.is_dict(model.get("weights")) else ()
    return [f"model={name}", *(f"model.weights.{part}={RANDOM}" for part in parts)]


def composed(*fields: str) -> DictConfig:
    """The configuration with these fields set."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(fields))


def sizes(name: str) -> dict[str, dict[str, ModelSize]]:
    """Of one model in half precision: by bits and method."""
    base = Experiment(composed(*overrides(name), "logger=csv"))
    # Not the method of diffusers' models, which warns of modules that the numbers need in fp32.
    structure = nn.Module.to(copy.deepcopy(base.model.structure), "meta", torch.bfloat16)
    found: dict[str, dict[str, ModelSize]] = {bits: {} for bits in BITS}
    for bits in BITS:
        for quant in options("quant"):
            experiment = base.variant(quant=quant, bits=bits)
            if experiment.method.quantizes:
                found[bits][quant] = model_size(structure, planned_on(experiment, structure))
    return found


def table(found: dict[str, dict[str, ModelSize]]) -> pd.DataFrame:
    """One row a model, one column for methods that are alike in all of them: found by model and method."""
    rows = []
    groups = alike({name: {quant: size.total for quant, size in of.items()} for name, of in found.items()})
    for name, of in found.items():
        some = next(iter(of.values()))
        row = {"model": name, "half precision": f"{some.half / 1000:.2f}"}
        for group in groups:
            row[", ".join(group)] = beside(max(of[quant].total for quant in group), some)
        codes = max(size.all_codes for size in of.values())
        rows.append(row | {"codes of all sets, at most": f"{codes / 1000:.1f}"})
    return pd.DataFrame(rows)


def alike(totals: dict[str, dict[str, float]]) -> list[list[str]]:
    """Methods in groups, smallest first: those of a group differ little from its first one in every model."""
    quants = sorted(next(iter(totals.values())), key=lambda quant: (sum(of[quant] for of in totals.values()), quant))
    groups: list[list[str]] = []
    for quant in quants:
        if groups and all(of[quant] <= (1 + ALIKE) * of[groups[-1][0]] for of in totals.values()):
            groups[-1].append(quant)
        else:
            groups.append([quant])
    return [sorted(group) for group in groups]


def beside(megabytes: float, size: ModelSize) -> str:
    """GB, and how many times smaller that is than the model in fp32 and in half precision."""
    return f"{megabytes / 1000:.2f} ({2 * size.half / megabytes:.2f}, {size.half / megabytes:.2f})"


def page(names: Iterable[str]) -> str:
    """Markdown, of these models."""
    found = {name: sizes(name) for name in names}
    tables = [f"At {bits.upper()}:\n\n{markdown(table({n: of[bits] for n, of in found.items()}))}" for bits in BITS]
    return TEXT.format(tables="\n\n".join(tables), alike=ALIKE)


def write_page(description: str, page: Callable[[list[str]], str]) -> None:
    """Writes the file that the command line names with the page of the named models, or of those that it asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("file", type=Path, help="Markdown file to write")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of conf/model; all named ones without it")
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    write_text(asked.file, page(asked.models or [name for name in options("model") if name not in NOT_NAMED]))


if __name__ == "__main__":
    write_page(__doc__, page)
