"""Parameters are for the timesteps that they were calibrated at: other schedules are refused, or matched if asked."""

import json
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.models.test_another_family import LATENT, MODULE, STEPS, TEXT, Program, ToyModel
from vdq.diffusion.clock import CONDITIONAL, UNCONDITIONAL
from vdq.diffusion.noise import PromptNoise
from vdq.errors import UserError
from vdq.export import artefact, packed
from vdq.quant import QuantState, Stats
from vdq.quant.state import KIND, LAYOUT
from vdq.quant.storage import load as load_file
from vdq.quant.storage import save as save_file
from vdq.stages.experiment import Experiment

PER_BRANCH = ("quant=tsq_tsw", "quant.per_branch=true")
EXPORTED = ("stages=[calibrate,quantize,sample,evaluate,export]", "export=packed")
NEAREST = "quant.match=nearest"


class ShiftedModel(ToyModel):
    """With a field that makes another schedule of as many steps, as models of diffusers have one."""

    def __init__(self, scheduler: dict | None = None) -> None:
        super().__init__()
        self._shift = (scheduler or {}).get("shift", 3.0)

    def _scheduler(self, sampler) -> FlowMatchEulerDiscreteScheduler:
        return scheduler(sampler.steps, self._shift)


sys.modules[MODULE].ShiftedModel = ShiftedModel


def scheduler(steps: int, shift: float = 3.0) -> FlowMatchEulerDiscreteScheduler:
    made = FlowMatchEulerDiscreteScheduler(shift=shift)
    made.set_timesteps(steps)
    return made


@dataclass(frozen=True)
class Shifted(Program):
    model: str = "ShiftedModel"
    shift: float | None = None

    def config(self, *overrides: str):
        cfg = super().config(*overrides)
        cfg.model = {**cfg.model, "scheduler": None if self.shift is None else {"shift": self.shift}}
        return cfg


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Shifted:
    return Shifted(tmp_path_factory.mktemp("schedules") / "runs")


@pytest.fixture(scope="module")
def folder(program) -> Path:
    return program.run(*PER_BRANCH, *EXPORTED) / "export" / "packed"


def nearest(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.abs(wanted[:, None] - known[None]).argmin(1)


def by_hand(folder: Path, steps: int, shift: float = 3.0) -> Tensor:
    """Oracle: a loop that sets the artefact's own clock to the nearest of its own steps before every call."""
    model = packed.load(folder, model=ShiftedModel())
    schedule = scheduler(steps, shift)
    sources = nearest(schedule.timesteps.numpy(), scheduler(STEPS).timesteps.numpy())
    prompts = Experiment(Program(Path("runs")).config()).prompts.evaluation
    texts, x = model.model.encode(prompts), PromptNoise(42, [0, 1], LATENT).initial()
    with torch.no_grad():
        for source, timestep in zip(sources.tolist(), schedule.timesteps, strict=True):
            told = {}
            for branch, given in ((CONDITIONAL, texts), (UNCONDITIONAL, [torch.zeros(1, TEXT)] * 2)):
                model.clock.set(source, branch)
                told[branch] = model.denoiser(texts=given, hidden_states=x, timestep=timestep.expand(2))
            guided = told[UNCONDITIONAL] + 7 * (told[CONDITIONAL] - told[UNCONDITIONAL])
            x = schedule.step(guided, timestep, x).prev_sample
    return x


def test_statistics_state_and_artefact_carry_the_timesteps(program, folder):
    expected = tuple(scheduler(STEPS).timesteps.tolist())
    stats = Stats.load(next((program.runs / "cache").glob("stats_*.safetensors")))
    state = QuantState.load(folder.parents[1] / "quant_state.safetensors")
    contents = artefact.read_manifest(folder)["contents"]
    assert stats.timesteps == state.timesteps == tuple(contents["timesteps"]) == expected
    assert state.calibrated is contents["calibrated"] is None
    assert f"{STEPS} steps, 1000 ... 8.9286: the tables fit no other timesteps" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("shift", "overrides", "schedule"),
    [(None, ["sampler.steps=6"], "6 steps, 1000 ... 8.9286"), (12.0, [], "4 steps, 1000 ... 125.98")],
)
def test_another_schedule_is_refused_with_both_named(program, folder, shift, overrides, schedule):
    other = Shifted(program.runs, shift=shift)
    before = set(program.runs.iterdir())
    message = rf"the parameters are for 4 steps, 1000 ... 8.9286, the sampler has {schedule}; match=nearest takes"
    with pytest.raises(UserError, match=message):
        other.run(*PER_BRANCH, *overrides, f"artefact={folder}")
    assert set(program.runs.iterdir()) == before
    sampler, model = Experiment(other.config(*overrides)).sampler, ShiftedModel(shift and {"shift": shift})
    with pytest.raises(UserError, match=message):
        packed.load(folder, model=model, sampler=sampler)
    with pytest.raises(UserError, match="sampler.guidance_scale=3 must be 7.0"):
        other.run(*PER_BRANCH, *overrides, f"artefact={folder}", NEAREST, "sampler.guidance_scale=3")


@pytest.mark.parametrize(("shift", "steps"), [(None, 6), (12.0, STEPS), (None, 3)])
def test_nearest_timesteps_are_taken_and_told(program, folder, caplog, shift, steps):
    other = Shifted(program.runs, shift=shift)
    overrides = (*PER_BRANCH, f"sampler.steps={steps}", f"artefact={folder}", NEAREST)
    with caplog.at_level(logging.WARNING):
        path = other.run(*overrides, *EXPORTED)
    assert torch.equal(other.latents(*overrides), by_hand(folder, steps, shift or 3.0))

    wanted, known = (scheduler(*each).timesteps.numpy() for each in ((steps, shift or 3.0), (STEPS,)))
    apart = np.abs(wanted - known[nearest(wanted, known)])
    result = json.loads((path / "result.json").read_text())
    assert result == json.loads((path / "manifest.json").read_text())["result"]
    assert result["largest_timestep_distance"] == pytest.approx(apart.max())
    assert result["mean_timestep_distance"] == pytest.approx(apart.mean())
    assert result["changed"] == f"artefact={folder}, match=nearest"
    told = f"at most {apart.max():.4g} and on average {apart.mean():.4g} away"
    assert f"{told}: this costs quality" in caplog.text
    card = (path / "export" / "packed" / "README.md").read_text()
    assert f"{steps} steps" in card and f"{told}, which costs quality" in card
    again = packed.load(path / "export" / "packed", model=ShiftedModel(shift and {"shift": shift}))
    prompts = Experiment(other.config()).prompts.evaluation
    latents = again.sample(again.model.encode(prompts), PromptNoise(42, [0, 1], LATENT))
    assert torch.equal(latents, other.latents(*overrides))


def test_an_artefact_samples_the_nearest_timesteps_by_itself(folder):
    sampler = Experiment(Program(Path("runs")).config("sampler.steps=6")).sampler
    model = packed.load(folder, model=ShiftedModel(), sampler=sampler, match="nearest")
    prompts = Experiment(Program(Path("runs")).config()).prompts.evaluation
    latents = model.sample(model.model.encode(prompts), PromptNoise(42, [0, 1], LATENT))
    assert torch.equal(latents, by_hand(folder, 6)) and model.state.distance.largest > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([NEAREST], "quant.match=nearest has no effect: only an artefact can be for another schedule"),
        ([NEAREST, "artefact"], "match=nearest has no effect: .* the same schedule, 4 steps, 1000 ... 8.9286"),
        (["quant.match=linear"], "quant.match=linear must be null or nearest"),
    ],
)
def test_a_match_that_does_nothing_is_refused(program, folder, overrides, message):
    given = [f"artefact={folder}" if each == "artefact" else each for each in overrides]
    with pytest.raises(UserError, match=message):
        program.run(*PER_BRANCH, *given)


def test_an_artefact_without_timesteps_is_read_where_the_sampler_is_its_own(program, folder, tmp_path):
    """Of an earlier version, which did not write them."""
    old = shutil.copytree(folder, tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text())
    for name in ("timesteps", "calibrated"):
        del manifest["contents"][name]
    manifest["sha256"] = artefact._own_digest(manifest)
    (old / "manifest.json").write_text(json.dumps(manifest))
    model = packed.load(old, model=ShiftedModel())
    prompts = Experiment(program.config()).prompts.evaluation
    own = model.sample(model.model.encode(prompts), PromptNoise(42, [0, 1], LATENT))
    assert torch.equal(own, program.latents(*PER_BRANCH))
    with pytest.raises(UserError, match="sampler.steps=6 must be 4, as artefact"):
        program.run(*PER_BRANCH, "sampler.steps=6", f"artefact={old}")
    with pytest.raises(UserError, match="match=nearest needs the timesteps of the parameters"):
        program.run(*PER_BRANCH, f"artefact={old}", NEAREST)


def test_files_without_timesteps_are_read(program, folder, tmp_path):
    path = folder.parents[1] / "quant_state.safetensors"
    tensors, header = load_file(path, kind=KIND, layout=LAYOUT)
    older = {name: value for name, value in header.items() if name not in ("timesteps", "calibrated")}
    save_file(tmp_path / "state", tensors, older, kind=KIND, layout=LAYOUT)
    assert QuantState.load(tmp_path / "state").timesteps is None
    assert QuantState.load(path).timesteps is not None


def test_statistics_of_another_schedule_are_refused(program, folder):
    stats = Stats.load(next((program.runs / "cache").glob("stats_*.safetensors")))
    experiment, model = Experiment(program.config(*PER_BRANCH)), ShiftedModel({"shift": 12.0})
    with pytest.raises(UserError, match="statistics are of 4 steps, 1000 ... 8.9286, must be of the sampler's 4 steps"):
        experiment.method.convert(
            model.denoiser,
            stats,
            num_steps=STEPS,
            quantizable=model.quantizable,
            timesteps=model.timesteps(experiment.sampler),
        )
