"""How stages compute: prompts are encoded, weights are loaded, tasks run on the configured devices."""

from __future__ import annotations

import copy
import logging
import time
from typing import TYPE_CHECKING

from torch import nn

from vdq.errors import UserError
from vdq.models.image_prompt import ImagePrompt
from vdq.peak_memory import PeakMemory
from vdq.stages.experiment import Experiment

if TYPE_CHECKING:
    from vdq.tasks.generation import Generation

log = logging.getLogger(__name__)


def encode(experiment: Experiment) -> None:
    """Encodes the prompts of both sets that are new, and warns of what the model cannot make of them; once."""
    if experiment.encoded:
        return
    experiment.encoded = True
    prompts = [*experiment.prompts.calibration, *experiment.prompts.evaluation]
    _check_images(experiment, prompts)
    for remark in experiment.model.remarks(prompts):
        log.warning("prompts: %s", remark)
    device, start = experiment.trainer().strategy.root_device, time.monotonic()
    with PeakMemory(device) as peak:
        count = experiment.model.prepare(prompts, device)
    if count:
        log.info("text: %d prompts encoded in %.0f s, at most %s", count, time.monotonic() - start, peak)


def _check_images(experiment: Experiment, prompts: list[str]) -> None:
    takes = experiment.model.takes_images
    for prompt in prompts:
        if takes and not isinstance(prompt, ImagePrompt):
            raise UserError(
                f"prompt {prompt!r} has no image, which model={experiment.cfg.model.name} begins videos with; "
                "dataset.prompts and dataset.calibration_prompts must be CSV files with the columns prompt,image"
            )
        if not takes and isinstance(prompt, ImagePrompt):
            raise UserError(f"prompt {prompt!r} has an image, and model={experiment.cfg.model.name} takes none")


def load_denoiser(experiment: Experiment) -> nn.Module:
    """The model's denoiser in full precision. Prompts are encoded first: their encoder may be larger still."""
    encode(experiment)
    return experiment.model.denoiser


def predict(experiment: Experiment, task: Generation) -> None:
    """Runs a task on the configured devices.

    Weights keep their dtype where the model says so. Else a Trainer of half precision converts them in place, so it
    gets copies: methods start from the originals. A quantized denoiser is a copy already.
    """
    dtype = {"precision": "32-true"} if experiment.model.owns_precision else {}
    trainer = experiment.trainer(**dtype)
    if trainer.world_size > task.most_devices:
        trainer = experiment.trainer(devices=task.most_devices, **dtype)
    if trainer.precision != "32-true":
        own = (task.clock, task.denoiser) if task.denoiser is not experiment.model.denoiser else (task.clock,)
        memo = {id(part): part for part in own}
        task.model, task.denoiser = copy.deepcopy((task.model, task.denoiser), memo)
    trainer.predict(task, return_predictions=False)
