"""Stats -> QuantState: smoothing factors, qparams and a report line for every layer."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import asdict, replace

import pandas as pd

from vdq.diffusion.timesteps import described
from vdq.export import packed
from vdq.files import write_json, write_text
from vdq.peak_memory import PeakMemory
from vdq.quant.operations import Operations, call_rows, operations
from vdq.quant.report import layer_reports, model_size
from vdq.quant.state import QuantState
from vdq.stages import calibrate
from vdq.stages.compute import encode, load_denoiser
from vdq.stages.experiment import Experiment
from vdq.stages.run_folder import intact

log = logging.getLogger(__name__)
COST = "quantize.json"


def run(experiment: Experiment) -> None:
    method, folder = experiment.method, experiment.folder
    if not method.quantizes:
        log.info("quantize: %s stays in full precision", experiment.cfg.quant.name)
        return
    if intact(QuantState.load, experiment.files.state):
        log.info("quantize: found, %s", experiment.files.state)
        return
    if experiment.identity.artefact is not None:
        state = _of_artefact(experiment)
        _write_report(experiment, state)
        state.save(experiment.files.state)
        log.info("quantize: parameters of the artefact, %s", experiment.cfg.artefact)
        if state.distance is not None:
            log.warning("quantize: %s", matched(state))
        return
    stats = calibrate.load(experiment)
    denoiser, timesteps = load_denoiser(experiment), experiment.model.timesteps(experiment.sampler)
    start = time.monotonic()
    with PeakMemory("cpu") as peak:
        state = method.convert(
            denoiser,
            stats,
            num_steps=experiment.sampler.steps,
            quantizable=experiment.model.quantizable,
            timesteps=timesteps,
            keep=experiment.keep,
        )
    write_json(folder / COST, {"seconds": round(time.monotonic() - start, 2)})
    report = _write_report(experiment, state)
    for name, table in method.tables(denoiser, stats, state, timesteps).items():
        write_text(folder / f"{name}.csv", pd.DataFrame(table.rows).to_csv(index=False))
        log.info("quantize: %s (%s.csv)", table.summary, name)
    state.save(experiment.files.state)
    size = model_size(denoiser, state)
    log.info(
        "quantize: %d of %d layers, weight error %.4f (mean), model %.2f MB instead of %.2f MB (%.2f MB in fp16); "
        "peak memory %s",
        len(state.layers),
        len(report),
        report["weight_error"].mean(),
        size.total,
        size.original,
        size.half,
        peak,
    )


def _write_report(experiment: Experiment, state: QuantState) -> pd.DataFrame:
    report = report_table(state, call_operations(experiment, state))
    write_text(experiment.folder / "report.csv", report.to_csv(index=False))
    return report


def _of_artefact(experiment: Experiment) -> QuantState:
    """The parameters of the artefact, with a report line for every layer; without the weights that its codes were made
    of, no weight has an error.
    """
    state = load_artefact(experiment).state
    structure = copy.deepcopy(experiment.model.structure).to("meta")
    told = {"reason": "not quantized in the artefact", "kept": experiment.kept_layers, "kept_steps": state.kept_steps}
    return replace(state, report=layer_reports(structure, state.layers, None, **told))


def load_artefact(experiment: Experiment) -> packed.PackedModel:
    """The packed model of the experiment, for its backend and its clock. Prompts are encoded first."""
    encode(experiment)
    given = {"backend": experiment.backend, "clock": experiment.clock, "model": experiment.model}
    given |= {"sampler": experiment.sampler, "match": experiment.match}
    model = packed.load(experiment.cfg.artefact, **given)
    model.check_companions(experiment.model)
    return model


def matched(state: QuantState) -> str:
    """What it means that steps have the parameters of other timesteps, in a sentence."""
    return (
        f"each of the {described(state.timesteps)} has the parameters of the nearest of other timesteps, at most "
        f"{state.distance.largest:.4g} and on average {state.distance.mean:.4g} away: this costs quality"
    )


def call_operations(experiment: Experiment, state: QuantState, act_bits: float | None = None) -> dict[str, Operations]:
    """Operations of every layer in one call of the denoiser for one video (vdq.quant.operations); none where the model
    does not say what a call gets.
    """
    structure = experiment.model.structure
    example_inputs = experiment.model.family.example_inputs
    if example_inputs is None or len(experiment.model.denoisers) > 1:
        return {}
    return operations(structure, state, call_rows(structure, example_inputs), act_bits)


def report_table(state: QuantState, counted: dict[str, Operations]) -> pd.DataFrame:
    """One row a layer, also for those kept in full precision and why; `counted` of each as further columns."""
    rows = [asdict(row) | (counted[row.fqn]._asdict() if row.fqn in counted else {}) for row in state.report]
    shapes = ["x".join(map(str, row["shape"])) for row in rows]
    return pd.DataFrame(rows).assign(shape=shapes, kept_steps=[" ".join(map(str, row["kept_steps"])) for row in rows])
