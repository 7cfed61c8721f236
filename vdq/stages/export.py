"""QuantState + weights -> an artefact: a folder that samples without the run, its statistics and its configuration."""

from __future__ import annotations

import logging
from pathlib import Path

from vdq.errors import UserError
from vdq.export import artefact
from vdq.export.base import QuantizedRun
from vdq.quant.report import MEGABYTE
from vdq.quant.state import QuantState
from vdq.stages import quantize
from vdq.stages.compute import load_denoiser
from vdq.stages.configuration import forced
from vdq.stages.experiment import Experiment
from vdq.stages.run_folder import intact

log = logging.getLogger(__name__)


def run(experiment: Experiment) -> None:
    exporter, folder = experiment.exporter, experiment.folder
    path = Path(exporter.path or folder / "export" / exporter.name)
    with experiment.files.lock():
        if path.exists() and not {"calibrate", "quantize", "export"} & set(forced(experiment.cfg)):
            _check_same(experiment, path)
            log.info("export: found, %s", path)
            return
        manifest = artefact.write(exporter, _quantized(experiment), path)
    size = artefact.total_bytes(manifest) / MEGABYTE
    full = sum(tensor.nbytes for tensor in experiment.model.structure.state_dict().values()) / MEGABYTE
    log.info("export: %s: %.2f MB, full precision is %.2f MB (%.2f times as much)", path, size, full, full / size)


def _check_same(experiment: Experiment, path: Path) -> None:
    """Raises UserError unless an undamaged artefact of this run and these options is there."""
    try:
        manifest = artefact.read(path, experiment.exporter.name, experiment.exporter.version)
        if manifest["signature"] != experiment.identity.signature:
            raise UserError(f"{path} is of another run, {manifest['run']}")
        for field, value in experiment.exporter.choices.items():
            if (made := manifest["contents"].get(field)) != value:
                raise UserError(f"{path} was made with export.{field}={made}, not {value}")
    except UserError as error:
        raise UserError(f"{error}; force=true replaces an artefact, or choose another export.path") from error


def _quantized(experiment: Experiment) -> QuantizedRun:
    if not intact(QuantState.load, experiment.files.state):
        quantize.run(experiment)
    return QuantizedRun(
        name=experiment.folder.name,
        signature=experiment.identity.signature,
        model=experiment.model,
        denoiser=load_denoiser(experiment),
        state=QuantState.load(experiment.files.state),
        sampler=experiment.sampler,
        backend=experiment.backend,
        config=experiment.config(),
        prompt=experiment.prompts.evaluation[0],
    )
