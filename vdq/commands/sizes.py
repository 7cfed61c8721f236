"""Size and operations of STDiT-XL/2 under every method, from structure alone: ``python -m vdq.commands.sizes FILE``."""

from __future__ import annotations

import argparse
import logging

import pandas as pd
from hydra import compose, initialize_config_dir
from torch import nn

from vdq.cli import file_to_write
from vdq.files import write_text
from vdq.installation import CONF
from vdq.models.stdit_family import example_inputs
from vdq.quant.layers import projections
from vdq.quant.operations import call_rows, quantized_operations, total
from vdq.quant.parts import Smoothing
from vdq.quant.report import MEGABYTE, ModelSize, model_size
from vdq.quant.state import QuantState
from vdq.quant.stats import LayerStats
from vdq.reports.text import markdown
from vdq.stages.experiment import Experiment

WEIGHT_BITS = {8: "w8a8", 6: "w6a8", 4: "w4a8"}
TEXT = """# Size of STDiT-XL/2 quantized

MB, from the structure alone, by weight bits; in brackets how many times smaller that is than the model in fp32
({fp32:.0f} MB) and in fp16 ({fp16:.0f} MB), which is what the paper starts from. Below 1 the quantized model is larger.
Written by `python -m vdq.commands.sizes`.

{sizes}

Codes at their bit-width for every weight set, or the original weights in fp32 where those take less than the codes of
all sets, which are then made of them step by step; the last column has the codes of all sets at 8 bits. Scales, zero
points, smoothing factors and everything that is not quantized are in fp32, among them the two linears of temporal
features that `qvd` quantizes as well: their codebooks follow from weights. Shifts, corrections and the low-rank branch
of `static_plus` are fp16. Full precision is {parameters:.1f} M parameters and {buffers:.1f} M numbers of position
tables and the null caption.

What the quantized layers store and compute beside integers, with 4-bit weights: a share is of the integer multiply-adds
(MACs) of one call of the denoiser for a video. The branch of `static_plus` multiplies in floating point; a rotation is
a fast Hadamard transform, so it adds only. `static_plus` has tables of one row for text, which does not change over
steps; they are counted with a row a step here.

{costs}

Memory of the quantized layers for `tsq_tsw` at W8 and fp16, GB, by `backend.weight_sets`:

{kept}
"""
STRUCTURE = ["model=opensora_v1_512", *(f"model.weights.{part}=random" for part in ("denoiser", "autoencoder"))]


def planned(quant: str, bits: str) -> tuple[Experiment, QuantState]:
    """A method on STDiT-XL/2 without weights."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = Experiment(compose("config", overrides=[*STRUCTURE, f"quant={quant}", f"bits={bits}"]))
    return experiment, planned_on(experiment, experiment.model.structure)


def planned_on(experiment: Experiment, structure: nn.Module) -> QuantState:
    """What the method of an experiment decides for its model, whose structure is on the meta device, as are the
    parameters of every layer.
    """
    steps = experiment.sampler.steps
    layers, by_shape = {}, {}
    for p in projections(structure, experiment.model.quantizable) if experiment.method.quantizes else []:
        if p.weight.shape not in by_shape:
            stats = LayerStats.empty(steps, p.weight.shape[1], "meta").with_zeros()
            by_shape[p.weight.shape] = experiment.method.layer(p.weight.float(), stats, steps)
        layers[p.fqn] = by_shape[p.weight.shape]
    return QuantState(layers, steps)


def table() -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a method. Sizes in MB (1e6 bytes) for 8, 6 and 4 bits, with how many times smaller that is than the model
    in fp32 and in fp16; and what is stored and computed beside the integers.
    """
    sizes, costs = [], []
    for quant in sorted(path.stem for path in (CONF / "quant").glob("*.yaml")):
        found: dict[int, ModelSize] = {}
        for bits, option in WEIGHT_BITS.items():
            experiment, state = planned(quant, option)
            found[bits] = model_size(experiment.model.structure, state)
        sets = max((quant.weight.num_sets for quant in state.layers.values()), default=1)
        row = {"method": quant, "layers": len(state.layers), "weight sets": sets}
        row |= {f"W{bits}": beside_references(size.total, size) for bits, size in found.items()}
        row["codes, W8"] = f"{found[8].all_codes:.0f}"
        sizes.append(row | {"sort": found[8].total})
        if state.layers:
            costs.append({"method": quant} | _beside(experiment.model.structure, state) | {"sort": found[8].total})
    return tuple(
        pd.DataFrame(rows).sort_values(["sort", "method"], ignore_index=True).drop(columns="sort")
        for rows in (sizes, costs)
    )


def beside_references(megabytes: float, size: ModelSize) -> str:
    """MB, and in brackets how many times smaller that is than the model in fp32 and in fp16."""
    return f"{megabytes:.0f} ({size.original / megabytes:.2f}, {size.half / megabytes:.2f})"


def _beside(structure: nn.Module, state: QuantState) -> dict[str, str]:
    """What quantized layers store and compute beside the integers."""
    size, work = (
        model_size(structure, state),
        total(quantized_operations(structure, state, call_rows(structure, example_inputs))),
    )
    return {
        "MB beside codes": f"{size.parameters:.1f}",
        "of it branch": f"{size.branches:.1f}",
        "bits a weight": f"{size.bits_per_weight:.2f}",
        "integer MACs, 10^9": f"{work.integer_macs / 1e9:.0f}",
        "branch MACs": f"{work.float_macs / work.integer_macs:.2%}",
        "rotation additions": f"{work.rotation_adds / work.integer_macs:.2%}",
    }


def memory() -> pd.DataFrame:
    """What the fake_quant backend's choices for tsq_tsw at W8 take, GB, with a denoiser in fp16."""
    _, state = planned("tsq_tsw", "w8a8")
    smoothed = ((quant.weight, quant.part(Smoothing.kind)) for quant in state.layers.values())
    elements = sum(weight.scale.shape[1] * smoothing.factors.shape[1] for weight, smoothing in smoothed)
    sets = state.num_steps
    rows = [
        {"weight_sets": "keep", "device": 2 * sets * elements, "host": 0},
        {"weight_sets": "packed", "device": 2 * elements, "host": sets * elements},
        {"weight_sets": "requantize", "device": (4 + 2) * elements, "host": 0},
    ]
    gigabytes = pd.DataFrame(rows)
    gigabytes[["device", "host"]] = (gigabytes[["device", "host"]] / (1000 * MEGABYTE)).round(1)
    return gigabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=file_to_write, help="Markdown file to write")
    path = parser.parse_args().file
    logging.disable(logging.INFO)
    sizes, costs = table()
    structure = planned("fp16", "w8a8")[0].model.structure
    size = model_size(structure, QuantState({}, 1))
    parameters = sum(tensor.numel() for tensor in structure.parameters()) / MEGABYTE
    shown = map(markdown, (sizes, costs, memory().astype(str)))
    facts = {"fp32": size.original, "fp16": size.half, "parameters": parameters, "buffers": size.half / 2 - parameters}
    write_text(path, TEXT.format(**dict(zip(("sizes", "costs", "kept"), shown, strict=True)), **facts))


if __name__ == "__main__":
    main()
