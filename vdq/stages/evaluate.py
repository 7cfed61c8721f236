"""videos -> metrics: scores the run and its reference, finishes the run folder and logs it.

Order matters: ``result.json`` is the last file of a run, and what is interrupted before that is done again. The tracker
comes after it: whatever becomes of logging, the result is there.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from filelock import FileLock
from omegaconf import OmegaConf

from vdq.data.samples import video_path
from vdq.files import write_json, write_text
from vdq.quant.operations import total
from vdq.quant.report import mean_act_bits, model_size
from vdq.quant.state import QuantState
from vdq.reports.tables import comparison
from vdq.stages import calibrate, quantize, sample
from vdq.stages.experiment import Experiment
from vdq.tasks.evaluation import Evaluation, SampleDataset
from vdq.tasks.generation import EXECUTION
from vdq.tracking.finished import log_finished, wants_logging
from vdq.tracking.manifest import manifest
from vdq.tracking.registry import RESULT, read_result

log = logging.getLogger(__name__)
SWEEP = "WANDB_SWEEP_ID"  # in the environment of a run that `wandb agent` has started


def run(experiment: Experiment) -> None:
    if experiment.model.random:
        log.warning("evaluate: the model's weights are random: no metric is taken of %s", experiment.folder)
        return
    pair = [experiment] if experiment.reference is None else [experiment.reference, experiment]
    results = [_evaluate(each) for each in pair]
    if len({(result["dtype"], result["device"]) for result in results}) > 1:
        log.warning("evaluate: the reference was sampled in another dtype or on another device; force=true repeats it")
    print(f"\n{comparison(pd.DataFrame(results))}\n\n{experiment.folder}")


def _evaluate(experiment: Experiment) -> dict:
    folder = experiment.folder
    if result := _done(experiment):
        log.info("evaluate: %s: done on %s (force=true repeats it)", folder, result["finished"])
        waited_for = SWEEP in os.environ and experiment.reference is not None  # by the sweep's agent
        if waited_for or wants_logging(folder):
            _track(experiment, result)
        return result
    if not sample.complete(experiment):
        sample.run(experiment)
    with FileLock(folder / ".lock"):
        if result := _done(experiment):  # by another process, while this one waited
            return result
        (folder / RESULT).unlink(missing_ok=True)
        reference = experiment.reference.folder if experiment.reference else None
        data = SampleDataset(experiment.prompts.evaluation, folder, reference)
        task = Evaluation(metrics=experiment.metrics, data=data, folder=folder)
        experiment.trainer(precision="32-true").test(task, verbose=False)
        return _finish(experiment)


def _done(experiment: Experiment) -> dict | None:
    """The result, if the run was finished with the same metrics."""
    result = read_result(experiment.folder)
    return result if result and result["metrics"] == experiment.metrics_signature else None


def _finish(experiment: Experiment) -> dict:
    folder = experiment.folder
    scores = json.loads((folder / "metrics.json").read_text())
    execution = json.loads((folder / EXECUTION).read_text())
    result = _identity(experiment)
    if execution.get("mean_act_bits") is not None:  # decided while sampling
        result["mean_act_bits"] = execution["mean_act_bits"]
    result |= _cost(experiment) | _operations(experiment, result["mean_act_bits"])
    result |= _ran(execution) | scores["values"] | scores["notes"]
    result |= {
        "metrics": experiment.metrics_signature,
        "scored_on": scores["machine"]["processor"],
        "higher_is_better": scores["higher_is_better"],
        "assets": scores["assets"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(experiment.config())))
    write_json(folder / "manifest.json", manifest(result, execution))
    write_json(folder / RESULT, result)
    _track(experiment, result)
    return result


def _track(experiment: Experiment, result: dict) -> None:
    report = experiment.folder / "report.csv"
    log_finished(
        experiment.tracker,
        experiment.folder,
        experiment.config(),
        result,
        metrics=json.loads((experiment.folder / "metrics.json").read_text())["values"],
        per_video=_videos(experiment),
        report=pd.read_csv(report) if report.exists() else pd.DataFrame(),
    )


def _identity(experiment: Experiment) -> dict:
    """What the run is: the columns that tables and sweeps select by."""
    cfg, method, structure = experiment.cfg, experiment.method, experiment.model.structure
    state = _state(experiment)
    kinds = {"static" if quant.act.static else "dynamic" for quant in state.layers.values()}
    size = model_size(structure, state)
    return {
        "name": experiment.name,
        "model": cfg.model.name,
        "dataset": experiment.prompts.name,
        "quant": cfg.quant.name,
        "bits": experiment.bits or "full",
        "weight_bits": method.weight_bits,
        "act_bits": method.act_bits,
        "mean_act_bits": mean_act_bits(state),
        "kind": "+".join(sorted(kinds)) or "full precision",
        "backend": experiment.integer,
        "changed": experiment.changed,
        "alpha": cfg.quant.get("alpha"),
        "seed": cfg.seed,
        "num_prompts": len(experiment.prompts.evaluation),
        "quantized_layers": len(state.layers),
        "size_mb": size.total,
        "size_mb_fp16": size.half,
        "bits_per_weight": size.bits_per_weight,
        "signature": experiment.signature,
        "reference": (experiment.reference or experiment).signature,
        "stats": experiment.stats_signature if experiment.calibrates else None,
    }


def _state(experiment: Experiment) -> QuantState:
    if experiment.method.quantizes:
        return QuantState.load(experiment.state_path)
    return QuantState({}, experiment.clock.num_steps)


def _operations(experiment: Experiment, act_bits: float | None) -> dict:
    """Of all layers together, in 10^9 and 10^12; act_bits: their mean."""
    found = total(quantize.call_operations(experiment, _state(experiment), act_bits))
    return {
        "integer_gmacs": found.integer_macs / 1e9,
        "float_gmacs": found.float_macs / 1e9,
        "rotation_gadds": found.rotation_adds / 1e9,
        "bit_tops": None if found.bit_operations is None else found.bit_operations / 1e12,
    }


def _cost(experiment: Experiment) -> dict:
    """Prompts and seconds of the calibration, and seconds in which the recipe made its parameters; None: unknown."""
    made = [experiment.stats_path] if experiment.calibrates else []
    made += [experiment.samples_path] if experiment.records else []
    seconds = [_seconds(calibrate.cost_path(path)) for path in made]
    return {
        "calibration_prompts": len(experiment.prompts.calibration) if made else 0,
        "calibration_seconds": None if None in seconds else sum(seconds),
        "quantize_seconds": _seconds(experiment.folder / quantize.COST),
    }


def _seconds(path: Path) -> float | None:
    return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.is_file() else None


def _ran(execution: dict) -> dict:
    """How it was sampled; no time if the last session did not sample every video."""
    whole = execution["videos"] == execution["of_videos"]
    return {
        "arithmetic": execution["arithmetic"],
        "dtype": execution["dtype"],
        "device": execution["device"],
        "processor": execution.get("processor"),
        "sampling_seconds": execution["seconds"] if whole else None,
    }


def _videos(experiment: Experiment) -> pd.DataFrame:
    """The per-video scores with the paths of the video and of its reference."""
    table = pd.read_csv(experiment.folder / "per_video.csv")
    table["video"] = [str(video_path(experiment.folder, index)) for index in table["index"]]
    if experiment.reference is not None:
        table["reference"] = [str(video_path(experiment.reference.folder, index)) for index in table["index"]]
    return table
