"""Options that the user set and that would do nothing as the other options are: each is refused, with the reason.

Only what stands on the command line of a single run is looked at. Defaults and experiments hold fields for every use,
and what one run of a sweep does not need another one may.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from vdq.benchmark.plan import BLOCK, LINEAR, SAMPLER
from vdq.errors import UserError
from vdq.models.base import RANDOM
from vdq.stages.configuration import STAGES, forced
from vdq.stages.experiment import Experiment

Idle = Iterator[tuple[str, str]]  # an option and why it does nothing
NO_MODEL = ("model", "quant", "bits", "alpha", "sampler", "dataset", "backend", "artefact", "batch_size", "seed")
OF_QUANTIZED = ("bits", "backend", "alpha", "quant.keep", "quant.keep_steps")
OF_STDIT = ("frames", "side", "hidden_size", "num_heads", "caption_tokens", "caption_channels")


def explicit() -> dict[str, str]:
    """What the command line of a single run sets, by config group or field; nothing in a sweep, also one of W&B."""
    if not HydraConfig.initialized() or "WANDB_SWEEP_ID" in os.environ:
        return {}
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.RUN:
        return {}
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return {each.key_or_group: each.input_line for each in parser.parse_overrides(list(hydra.overrides.task))}


def check(experiment: Experiment, options: dict[str, str]) -> None:
    """Raises UserError for an option that does nothing, as far as it is known without the model; options: as `explicit`
    returns them. What is switched off may always be.
    """
    _refuse(_idle(experiment), options)


def check_calibration(experiment: Experiment, options: dict[str, str]) -> None:
    """The same for options of a calibration, which the model's layers may not need."""
    _refuse(_of_calibration(experiment), options)


def _refuse(idle_options: Idle, options: dict[str, str]) -> None:
    wanted = {name: text for name, text in options.items() if text.partition("=")[2].lower() not in ("false", "null")}
    for idle, reason in idle_options if wanted else ():
        for name, text in wanted.items():
            if name == idle or name.startswith(f"{idle}."):
                raise UserError(f"{text} has no effect: {reason}")


def _idle(experiment: Experiment) -> Idle:
    cfg, wanted = experiment.cfg, set(experiment.cfg.stages)
    yield from _of_stages(experiment, wanted)
    yield from _of_force(experiment, wanted)
    if cfg.videos is not None:
        yield from ((name, "a folder of videos is scored without a model") for name in NO_MODEL)
        return
    if wanted <= set(STAGES):
        yield from _of_one_run(experiment, wanted)
    yield from _of_sampling(experiment)
    if "benchmark" in wanted:
        yield from _of_benchmark(experiment)


def _of_stages(experiment: Experiment, wanted: set[str]) -> Idle:
    asked = f"stages=[{','.join(experiment.cfg.stages)}]"
    yield "tabulate", "it ends a sweep (-m); of one run 'stages=[tabulate]' writes the tables"
    if "export" not in wanted:
        yield "export", f"{asked} exports nothing, 'stages=[export]' does"
    if "benchmark" not in wanted:
        yield "benchmark", f"{asked} measures nothing, 'stages=[benchmark]' does"
    if "evaluate" not in wanted:
        yield "metrics", f"{asked} scores nothing"
    if wanted <= {"tabulate", "choose_alpha"}:
        yield "batch_size", f"{asked} samples nothing"
        yield "artefact", f"{asked} samples nothing"
    if wanted <= {"search_alpha", "choose_alpha"}:
        yield "quant", f"{asked} takes the methods of the grid"
        yield "bits", f"{asked} takes the bit-widths of the grid"
    if not {"sample", "evaluate"} & wanted or experiment.method.quantizes:
        yield "reseeded", "only where quant=fp16 is sampled, it is sampled with other noise as well"


def _of_force(experiment: Experiment, wanted: set[str]) -> Idle:
    again, made = forced(experiment.cfg), [stage for stage in STAGES if stage in wanted]
    if not again or (made and STAGES.index(again[-1]) > STAGES.index(made[-1])) or not made:
        yield "force", f"stages=[{','.join(experiment.cfg.stages)}] makes nothing of it again"
    elif again == ["quantize"] and not experiment.method.quantizes:
        yield "force", f"quant={experiment.cfg.quant.name} is not quantized"


def _of_calibration(experiment: Experiment) -> Idle:
    cfg = experiment.cfg
    if cfg.videos is not None or experiment.identity.calibrates:
        return
    if experiment.method.quantizes and set(cfg.stages) <= set(STAGES):
        yield "dataset.calibration_prompts", f"quant={cfg.quant.name} is not calibrated"
    if forced(cfg) == ["calibrate"]:
        yield "force", f"quant={cfg.quant.name} is not calibrated"


def _of_one_run(experiment: Experiment, wanted: set[str]) -> Idle:
    """Of stages alone: commands look at other runs too."""
    quant = experiment.cfg.quant
    if not experiment.method.quantizes:
        yield from ((name, f"quant={quant.name} is not quantized") for name in OF_QUANTIZED)
        return
    if wanted == {"calibrate"}:
        same = "the statistics are the same for all"
        yield from ((name, same) for name in ("bits", "backend", "alpha", "dataset.num_prompts"))
    if "${alpha." not in str(OmegaConf.to_container(quant, resolve=False)):
        yield "alpha", f"quant={quant.name} takes no alpha from it; quant.alpha sets one where it smooths"
    idle = experiment.method.without_effect(experiment.sampler.steps)
    yield from ((f"quant.{name}", reason) for name, reason in idle.items())


def _of_sampling(experiment: Experiment) -> Idle:
    sampler, model = experiment.cfg.sampler, experiment.cfg.model
    if sampler.get("guidance_scale") == 1:
        yield "sampler.guidance_channels", "sampler.guidance_scale=1 guides none"
    if sampler.get("guidance_channels") == 0:
        yield "sampler.guidance_scale", "sampler.guidance_channels=0 guides none"
    weights = model.get("weights")
    for part, value in weights.items() if OmegaConf.is_dict(weights) else ():
        if value == RANDOM or Path(value).expanduser().exists():
            yield f"model.revisions.{part}", f"model.weights.{part}={value} is no repository"
    pretrained = model.get("pretrained")
    local = pretrained is not None and Path(pretrained).expanduser().is_dir()
    if local or pretrained == RANDOM:
        yield "model.revision", f"model.pretrained={pretrained} is no repository"
    if local:
        yield "model.structure", f"model.pretrained={pretrained} is a folder, whose files say it"


def _of_benchmark(experiment: Experiment) -> Idle:
    parts, own = set(experiment.benchmark.parts), experiment.model.makes_blocks
    if not parts & {BLOCK, LINEAR}:
        asked = f"benchmark.parts=[{','.join(experiment.benchmark.parts)}] has no block"
        yield from ((f"benchmark.{name}", f"{asked} of given dimensions") for name in OF_STDIT)
        yield "benchmark.peers", f"{asked} and no peers"
    elif own:
        name = experiment.cfg.model.name
        yield from ((f"benchmark.{field}", f"model={name} says it, benchmark.call its size") for field in OF_STDIT)
    if parts == {SAMPLER} or not own:
        yield "benchmark.call", "only blocks of models of diffusers have one"
    if SAMPLER not in parts:
        yield "benchmark.videos", f"benchmark.parts has no {SAMPLER}"
