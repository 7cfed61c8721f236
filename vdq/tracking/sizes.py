"""Size of STDiT-XL/2 under every recipe, from its structure alone: ``python -m vdq.tracking.sizes FILE.md``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir

from vdq.files import write_text
from vdq.quant.layers import projections
from vdq.quant.report import MEGABYTE, ModelSize, model_size
from vdq.quant.state import QuantState
from vdq.quant.stats import LayerStats
from vdq.stages.experiment import CONF, Experiment

WEIGHT_BITS = {8: "w8a8", 6: "w6a8", 4: "w4a8"}
STRUCTURE = ["model=opensora_v1_512", *(f"model.weights.{part}=random" for part in ("denoiser", "autoencoder"))]


def planned(quant: str, bits: str) -> tuple[Experiment, QuantState]:
    """A recipe on the full model without weights: parameters of every layer on the meta device."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = Experiment(compose("config", overrides=[*STRUCTURE, f"quant={quant}", f"bits={bits}"]))
    steps, model = experiment.sampler.schedule.num_steps, experiment.model
    layers, by_shape = {}, {}
    for p in projections(model.structure):
        if experiment.method.quantizes and model.quantizable(p.fqn):
            if p.weight.shape not in by_shape:
                stats = LayerStats.empty(steps, p.weight.shape[1], "meta").with_zeros()
                by_shape[p.weight.shape] = experiment.method.layer(p.weight, stats, steps)
            layers[p.fqn] = by_shape[p.weight.shape]
    return experiment, QuantState(layers, steps)


def table() -> pd.DataFrame:
    """One row a recipe: weight sets, and the size in MB (1e6 bytes) for 8, 6 and 4 bits."""
    rows = []
    for quant in sorted(path.stem for path in (CONF / "quant").glob("*.yaml")):
        sizes: dict[int, ModelSize] = {}
        for bits, option in WEIGHT_BITS.items():
            experiment, state = planned(quant, option)
            sizes[bits] = model_size(experiment.model.structure, state)
        sets = max((params.num_weight_ranges for params in state.layers.values()), default=1)
        row = {"recipe": quant, "layers": len(state.layers), "weight sets": sets}
        row |= {f"W{bits}": f"{size.total:.0f}" for bits, size in sizes.items()}
        row["of it parameters"] = f"{sizes[8].parameters:.1f}"
        rows.append(row | {"sort": sizes[8].total})
    return pd.DataFrame(rows).sort_values(["sort", "recipe"], ignore_index=True).drop(columns="sort")


def memory() -> pd.DataFrame:
    """What the fake_quant backend's choices for tsq_tsw at W8 take, GB, with a denoiser in fp16."""
    _, state = planned("tsq_tsw", "w8a8")
    elements = sum(params.weight.scale.shape[1] * params.smoothing.shape[1] for params in state.layers.values())
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
    parser.add_argument("file", type=Path, help="Markdown file to write")
    path = parser.parse_args().file
    logging.disable(logging.INFO)
    sizes, kept = (frame.to_markdown(index=False, disable_numparse=True) for frame in (table(), memory().astype(str)))
    write_text(
        path,
        f"# Size of STDiT-XL/2 quantized\n\nMB, from the structure alone, by weight bits. "
        f"Written by `python -m vdq.tracking.sizes`.\n\n{sizes}\n\n"
        "Codes at their bit-width for every weight set; scales, zero points, smoothing factors and everything that is\n"
        "not quantized in fp32, among them the two linears of temporal features that `qvd` quantizes as well: their\n"
        "codebooks follow from weights. Full precision is 759.6 M parameters in fp32.\n\n"
        f"Memory of the quantized layers for `tsq_tsw` at W8 and fp16, GB, by `backend.weight_sets`:\n\n{kept}\n",
    )


if __name__ == "__main__":
    main()
