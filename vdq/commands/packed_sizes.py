"""Measures packed artefacts of STDiT-XL/2 with random weights: ``python -m vdq.commands.packed_sizes FILE.md``.

One artefact at a time is on disk, below ``paths.runs``, and removed when it is measured. The memory is that of the
network in fp32, 3 GB. ``--methods tsq_tsw`` writes 20 weight sets: 15 GB at 8 bits.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from hydra import compose, initialize_config_dir

from vdq.cli import file_to_write, one_sentence_at_the_end
from vdq.commands.sizes import STRUCTURE
from vdq.errors import UserError
from vdq.export import artefact
from vdq.export.base import QuantizedRun
from vdq.export.packed import PackedExporter
from vdq.files import write_text
from vdq.installation import CONF
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import projections
from vdq.quant.report import MEGABYTE, model_size
from vdq.quant.state import QuantState
from vdq.quant.stats import LayerStats
from vdq.reports.text import markdown
from vdq.stages.experiment import Experiment

TEXT = """# Size of quantized STDiT-XL/2 on disk

MB (1e6 bytes) of artefacts that were written with random weights, beside what follows from the structure (sizes do not
depend on values). `files` has the headers, the manifest and the card on top of the tensors; it is compared with the
denoiser in fp32 and in fp16. Written by `python -m vdq.commands.packed_sizes`{settings}.

{table}
"""


def measure(experiment: Experiment, below: Path) -> dict[str, str | int]:
    """Writes the artefact of a method in a new folder below, measures and removes it: one row of the table.

    Raises UserError for a method that cannot be exported, and when the disk has no room for it.
    """
    exporter = PackedExporter()
    exporter.check(experiment.method, experiment.sampler, experiment.backend)
    denoiser, steps = experiment.model.denoiser, experiment.sampler.steps
    state = QuantState(_layers(experiment), steps)
    computed = model_size(denoiser, state)
    if (free := shutil.disk_usage(below).free / MEGABYTE) < 1.05 * computed.total:
        raise UserError(f"{below} has {free:.0f} MB left, {experiment.identity.name} takes {computed.total:.0f} MB")
    run = QuantizedRun(
        name=experiment.identity.name,
        signature=experiment.identity.signature,
        model=experiment.model,
        denoiser=denoiser,
        state=state,
        sampler=experiment.sampler,
        backend=experiment.backend,
        config=experiment.config(),
    )
    with tempfile.TemporaryDirectory(dir=below) as folder:
        start = time.monotonic()
        manifest = artefact.write(exporter, run, Path(folder) / "packed")
        seconds = time.monotonic() - start
        files = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / MEGABYTE
    return {
        "method": experiment.cfg.quant.name,
        "bits": experiment.identity.bits,
        "weight sets": max(quant.weight.num_sets for quant in state.layers.values()),
        "computed": f"{computed.total:.2f}",
        "tensors": f"{sum(manifest['contents']['bytes'].values()) / MEGABYTE:.2f}",
        "files": f"{files:.2f}",
        "fp32": f"{computed.original:.2f}",
        "times smaller": f"{computed.original / files:.2f}",
        "fp16": f"{computed.half:.2f}",
        "times smaller than fp16": f"{computed.half / files:.2f}",
        "seconds to write": f"{seconds:.0f}",
    }


def _layers(experiment: Experiment) -> dict[str, LayerQuant]:
    """What is decided for every quantizable layer, for inputs that no two steps have alike."""
    steps, layers = experiment.sampler.steps, {}
    for p in projections(experiment.model.denoiser, experiment.model.quantizable):
        absmax = torch.linspace(1, 2, steps)[:, None].expand(-1, p.weight.shape[1])
        rows = torch.ones(steps, dtype=torch.long)
        stats = LayerStats(min=-absmax, max=absmax, abs_sum=absmax.double(), rows=rows)
        layers[p.fqn] = experiment.method.layer(p.weight, stats.with_zeros(), steps)
    return layers


def table(methods: list[str], bits: list[str], overrides: list[str]) -> pd.DataFrame:
    """One row a method and bit-width; the network is built once."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = Experiment(compose("config", overrides=[*STRUCTURE, *overrides]))
    below = Path(experiment.cfg.paths.runs)
    below.mkdir(parents=True, exist_ok=True)
    chosen = [experiment.variant(quant=quant, bits=option) for quant, option in product(methods, bits)]
    return pd.DataFrame([measure(each, below) for each in chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=file_to_write, help="Markdown file to write")
    parser.add_argument("--methods", nargs="+", default=["asq_tsw"])
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w6a8", "w4a8"])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="fields, model.denoiser.depth=2")
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    rows = table(asked.methods, asked.bits, asked.set)
    settings = f" with {' '.join(asked.set)}" if asked.set else ""
    write_text(asked.file, TEXT.format(settings=settings, table=markdown(rows)))


if __name__ == "__main__":
    with one_sentence_at_the_end():
        main()
