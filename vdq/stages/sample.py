"""QuantState + prompts -> videos, and those of the full-precision reference, which is a run of its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from vdq.data.samples import read_schedules, sample_path
from vdq.quant.convert import apply
from vdq.quant.layers import projections
from vdq.quant.state import QuantState
from vdq.reports.figures import bits_figure
from vdq.stages import quantize
from vdq.stages.compute import load_denoiser, predict
from vdq.stages.experiment import Experiment
from vdq.stages.run_folder import intact
from vdq.tasks.generation import EXECUTION, Generation

log = logging.getLogger(__name__)
RANDOM_NOTE = "made with random weights: not a result"


def run(experiment: Experiment) -> None:
    if experiment.reference is not None:
        run(experiment.reference)
    prompts, folder = experiment.prompts.evaluation, experiment.folder
    with experiment.files.lock():
        todo = _todo(experiment)
        if not todo:
            log.info("sample: %s: all %d videos found", folder, len(prompts))
            return
        if len(todo) < len(prompts):
            log.info(
                "sample: %s: %d of %d videos found, the rest follows", folder, len(prompts) - len(todo), len(prompts)
            )
        task = Generation(
            model=experiment.model,
            denoiser=denoiser(experiment),
            sampler=experiment.sampler,
            clock=experiment.clock,
            prompts=prompts,
            indices=todo,
            batch_size=experiment.batch_size,
            seed=experiment.cfg.seed,
            folder=folder,
            title=f"sampling {experiment.cfg.quant.name}",
            arithmetic=experiment.arithmetic,
            note=RANDOM_NOTE if experiment.model.random else "",
        )
        predict(experiment, task)
        ran = _record(folder / EXECUTION)
        layers = ran["quantized_layers"]
        log.info(
            "sample: %s: %d videos in %.0f s; ran %s in %s on %s%s",
            folder,
            ran["videos"],
            ran["seconds"],
            ran["arithmetic"],
            ran["dtype"],
            ran["device"],
            f", {layers} quantized layers called {ran['quantized_calls']} times" if layers else "",
        )
        if ran["mean_act_bits"] is not None:
            bits_figure(read_schedules(folder), folder / "act_bits.png")
            log.info("sample: %.2f activation bits on average, %s", ran["mean_act_bits"], folder / "act_bits.png")
        if ran["integer_weights_mb"]:
            log.info("sample: integer weights of all time ranges take %s MB", ran["integer_weights_mb"])
        peaks = [f"{gigabytes} GB while {phase}" for phase, gigabytes in ran["peak_memory_gb"].items()]
        log.info("sample: peak memory on %s: %s", ran["device"], ", ".join(peaks) or "unknown")


def complete(experiment: Experiment) -> bool:
    """Whether every video of the run is there, with the record of what sampled it."""
    return not _todo(experiment)


def _todo(experiment: Experiment) -> list[int]:
    """Prompts without a sample; the last one if only the record of the sampling is missing."""
    count = len(experiment.prompts.evaluation)
    recorded = intact(_record, experiment.folder / EXECUTION)
    missing = [index for index in range(count) if not intact(load_file, sample_path(experiment.folder, index))]
    return missing or ([] if recorded else [count - 1])


def _record(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def denoiser(experiment: Experiment) -> nn.Module:
    """The denoiser that this experiment samples with: the model's own, its quantized copy, or an artefact's."""
    if not experiment.method.quantizes:
        return load_denoiser(experiment)
    if not intact(QuantState.load, experiment.files.state):
        quantize.run(experiment)
    if experiment.identity.artefact is not None:
        return quantize.load_artefact(experiment).denoiser
    state = QuantState.load(experiment.files.state)
    original, choice = load_denoiser(experiment), experiment.backend.weight_sets
    layers = ((p.weight, state.layers[p.fqn]) for p in projections(original) if p.fqn in state.layers)
    if choice is not None and (told := choice.summary(layers)):
        log.info("sample: weight sets: %s", told)
    return apply(original, state, experiment.clock, experiment.backend)
