"""What a finished run says of itself: the content of ``result.json``, by which registry, tables and sweeps select."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from vdq.quant.operations import total
from vdq.quant.report import mean_act_bits, model_size
from vdq.quant.state import QuantState
from vdq.stages import calibrate, quantize
from vdq.stages.experiment import Experiment


def content(experiment: Experiment, scores: dict, execution: dict) -> dict:
    """Identity, costs, circumstances and scores of a run, given the records of its scoring and of its sampling."""
    result = _identity(experiment)
    if execution.get("mean_act_bits") is not None:  # decided while sampling
        result["mean_act_bits"] = execution["mean_act_bits"]
    result |= _cost(experiment) | _operations(experiment, result["mean_act_bits"])
    result |= _ran(execution) | scores["values"] | scores["notes"]
    return result | {
        "versions": experiment.identity.versions | experiment.identity.judges,
        "metrics": experiment.identity.metrics_signature,
        "scored_on": scores["machine"]["processor"],
        "described": scores["described"],
        "assets": scores["assets"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _identity(experiment: Experiment) -> dict:
    """What the run is: the columns that tables and sweeps select by."""
    cfg, method, structure = experiment.cfg, experiment.method, experiment.model.structure
    state = _state(experiment)
    kinds = {"static" if quant.act.static else "dynamic" for quant in state.layers.values()}
    size = model_size(structure, state)
    found = {
        "name": experiment.identity.name,
        "model": cfg.model.name,
        "dataset": experiment.prompts.name,
        "quant": cfg.quant.name,
        "bits": experiment.identity.bits or "full",
        "weight_bits": method.weight_bits,
        "act_bits": method.act_bits,
        "mean_act_bits": mean_act_bits(state),
        "kind": "+".join(sorted(kinds)) or "full precision",
        "backend": experiment.identity.integer,
        "changed": experiment.identity.changed,
        "alpha": cfg.quant.get("alpha"),
        "seed": cfg.seed,
        "num_prompts": len(experiment.prompts.evaluation),
        "quantized_layers": len(state.layers),
        "size_mb": size.total,
        "size_mb_fp16": size.half,
        "bits_per_weight": size.bits_per_weight,
        "signature": experiment.identity.signature,
        "reference": (experiment.reference or experiment).identity.signature,
        "stats": experiment.identity.stats_signature if experiment.identity.calibrates else None,
    }
    if state.distance is not None:  # steps have the parameters of other timesteps
        found |= {f"{name}_timestep_distance": value for name, value in state.distance._asdict().items()}
    return found


def _state(experiment: Experiment) -> QuantState:
    if experiment.method.quantizes:
        return QuantState.load(experiment.files.state)
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
    """Prompts and seconds of the calibration, and seconds in which the method made its parameters; None: unknown."""
    made = [experiment.files.stats] if experiment.identity.calibrates else []
    made += [experiment.files.recorded] if experiment.identity.records else []
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
