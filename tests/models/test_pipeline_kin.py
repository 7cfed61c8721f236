"""Pipelines that only have to compute what they compute alone, with the clock right: all that can be built small."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests import tiny_pipelines
from vdq.diffusion.clock import BRANCHES, StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.methods.static import StaticMethod
from vdq.models.image_prompt import ImagePrompt
from vdq.models.pipelines.families import facts_of
from vdq.models.pipelines.model import DiffusersModel
from vdq.models.pipelines.refused import FRAMES, refusal
from vdq.quant.layers import linear_modules

STEPS, GUIDANCE = 3, 4.0
SLOW = {  # those whose like is among the others
    "anyflow",
    "chronoedit",
    "cosmos_i2v",
    "cosmos2_5",
    "easyanimate",
    "hunyuan_video_1_5_i2v",
    "kandinsky5_i2v",
    "sana_video_i2v",
    "skyreels_v2_i2v",
}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in sorted(tiny_pipelines.KIN)]
LINEARS = {  # of a block of the transformer that sees the video, as counted in the source of diffusers
    "wan_vace": (32, "10 in two blocks, 12 in one that follows a video"),
    "skyreels_v2_i2v": (24, "10, and two for the image"),
    "chronoedit": (24, "10, and two for the image"),
    "easyanimate": (24, "12"),
    "sana_video": (16, "8, its feed-forward is convolutions"),
    "sana_video_i2v": (16, "8"),
    "motif": (17, "12 and 5"),
    "hunyuan_video_i2v": (17, "12 and 5"),
    "hunyuan_skyreels_i2v": (17, "12 and 5"),
    "hunyuan_video_1_5_i2v": (12, "12"),
}


class Guardrail:
    """In place of Cosmos' models that judge prompts and videos."""

    def to(self, device: Any) -> Guardrail:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        return frames


@pytest.fixture(scope="module", autouse=True)
def guardrail():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cosmos_text2world", "cosmos_video2world", "cosmos2_video2world", "cosmos2_5_predict"):
            module = importlib.import_module(f"diffusers.pipelines.cosmos.pipeline_{name}")
            patch.setattr(module, "CosmosSafetyChecker", Guardrail)
        yield


@dataclass(frozen=True)
class Kin:
    """One pipeline, as files."""

    name: str
    folder: Path

    def model(self, **changes: Any) -> DiffusersModel:
        settings = {"pretrained": str(self.folder / "pipeline"), "cache": str(self.folder / "cache"), "dtype": "fp32"}
        return DiffusersModel(**settings | {"call": tiny_pipelines.CALLS[self.name]} | changes)

    def prompt(self, text: str) -> str:
        if not self.model().takes_images:
            return text
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.folder / "image.png")
        return ImagePrompt(text, self.folder / "image.png")

    def plain(self, text: str, output_type: str = "latent", seen=None, guidance: float = GUIDANCE) -> Plain:
        """A plain call of the pipeline as anybody would load it; seen(arguments) gets those of its transformer."""
        pipeline = tiny_pipelines.loaded(self.folder / "pipeline")
        takes, named = inspect.signature(pipeline.__call__).parameters, dict(tiny_pipelines.CALLS[self.name])
        prompt, generators = self.prompt(text), PromptNoise(1, [0], None).generators()
        named |= {"prompt": [str(prompt)], "generator": generators, "num_inference_steps": STEPS}
        if self.name == "wan_vace":
            named |= {"prompt": str(prompt), "generator": generators[0]}
        if isinstance(prompt, ImagePrompt):
            named["image"] = prompt.opened()
        if "guidance_scale" in takes:
            named["guidance_scale"] = guidance
        else:
            pipeline.guider = pipeline.guider.new(guidance_scale=guidance)
        calls, steps, last = [], [], {}

        def after(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
            steps.extend([step] * len(calls))
            calls.clear()
            last.update(tensors)
            return {}

        if "callback_on_step_end" in takes:
            named["callback_on_step_end"] = after
        else:
            _wrap(pipeline.scheduler, after)
        pipeline.transformer.register_forward_pre_hook(
            lambda _, args, named: calls.append(seen and seen(named)), with_kwargs=True
        )
        return Plain(pipeline(**named, output_type=output_type).frames, steps, last["latents"])


@dataclass(frozen=True)
class Plain:
    """What a plain call made, the step of each call of the transformer, and the latents after the last step."""

    made: Any
    steps: list[int]
    latents: Tensor


def _wrap(scheduler: Any, after) -> None:
    """For a pipeline without a callback: its scheduler says when a step is done."""
    step, numbers = type(scheduler).step.__get__(scheduler), iter(range(STEPS))

    def wrapped(*args: Any, **named: Any) -> Any:
        made = step(*args, **named)
        after(None, next(numbers), None, {"latents": made[0]})
        return made

    scheduler.step = wrapped


@pytest.fixture(scope="module", params=NAMES)
def kin(request, tmp_path_factory) -> Kin:
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = tiny_pipelines.build(request.param)
    if hasattr(pipeline, "safety_checker"):
        pipeline.register_modules(safety_checker=None)
    pipeline.save_pretrained(folder / "pipeline")
    return Kin(request.param, folder)


def sampled(model: DiffusersModel, prompt: str, clock: StepClock, guidance: float = GUIDANCE, **named) -> Tensor:
    model.prepare([prompt], "cpu")
    sampler = Sampler(steps=STEPS, guidance_scale=guidance)
    return model.sample(model.denoiser, model.encode([prompt]), PromptNoise(1, [0], None), clock, sampler, **named)


def test_latents_clock_and_frames_are_those_of_the_plain_pipeline(kin):
    """Bit for bit. Oracles: the plain pipeline's own callback, or a wrapper of its scheduler where it has none. Latents
    are those that it decodes: it returns fewer where it cuts off what they have beside the video.
    """
    model, clock, told, seen = kin.model(), StepClock(STEPS), [], []
    model.check(Sampler(steps=STEPS, guidance_scale=GUIDANCE))
    model.denoiser.register_forward_pre_hook(lambda *_: told.append((clock.step, clock.branch)))
    latents = sampled(model, kin.prompt("a cat"), clock, callback=lambda step, x: seen.append((step, x.shape[0])))
    plain = kin.plain("a cat")
    expected = plain.made if plain.made.shape == latents.shape else plain.latents
    assert torch.equal(latents, expected.float()) and torch.isfinite(latents).all()
    assert [step for step, _ in told] == plain.steps
    calls = len(plain.steps) // STEPS
    known = calls == len(BRANCHES) and model.family.calls_a_step == calls
    assert [branch for _, branch in told] == [*(BRANCHES if known else (None,) * calls)] * STEPS
    assert seen == [(step, 1) for step in range(STEPS)]  # once a step, also where the scheduler is asked twice
    frames = np.asarray(kin.plain("a cat", output_type="np").made)
    assert np.array_equal(model.decode(latents), (frames * 255).round().astype(np.uint8))


def test_of_two_calls_the_first_sees_the_prompt(kin):
    """Oracle: what plain calls hand their transformer, of which the unconditional text is that of every prompt."""
    if kin.model().family.calls_a_step != len(BRANCHES):
        pytest.skip("its calls are not told apart")
    texts: dict[str, list[Tensor]] = {prompt: [] for prompt in ("a cat", "a dog")}
    for prompt, found in texts.items():
        kin.plain(prompt, seen=lambda named, found=found: found.append(named["encoder_hidden_states"]))
    same = [torch.equal(*pair) for pair in zip(*texts.values(), strict=True)]
    assert same == [False, True] * STEPS


def test_linears_of_the_blocks_are_quantizable_without_modulation(kin):
    model = kin.model()
    chosen = [fqn for fqn, _ in linear_modules(model.structure) if model.quantizable(fqn)]
    assert len(chosen) == LINEARS.get(kin.name, (20, "10 in each of two blocks"))[0]
    assert not any("norm" in fqn or "embed" in fqn or "modulation" in fqn for fqn in chosen)


def test_drawn_texts_have_the_form_of_encoded_ones(kin):
    """For work on structure and speed; the lengths of texts are the model's own affair."""
    model = kin.model()
    if model.takes_images:
        pytest.skip("an image cannot be drawn")
    model.prepare(["a cat"], "cpu")
    (encoding,) = model.encode(["a cat"]).encodings
    sizes = {name: p.default for name, p in inspect.signature(type(model.structure).__init__).parameters.items()}
    drawn = model.family.text(sizes | dict(model.structure.config), 16, lambda *shape: torch.zeros(shape))
    assert _form(drawn) == _form(encoding)


def _form(node: Any) -> Any:
    if isinstance(node, Tensor):
        return node.dim(), node.shape[-1] if node.dim() == 3 else None, node.is_floating_point()
    return [_form(each) for each in node] if isinstance(node, list | tuple) else node


def saved(name: str, folder: Path, **parts: Any) -> Kin:
    pipeline = tiny_pipelines.build(name)
    pipeline.register_modules(**parts)
    pipeline.save_pretrained(folder / "pipeline")
    return Kin(name, folder)


def test_without_guidance_a_pipeline_gets_no_unconditional_text(tmp_path):
    """AnyFlow takes it into its batch whenever it is there."""
    tiny = saved("anyflow", tmp_path)
    assert torch.equal(sampled(tiny.model(), "a cat", StepClock(STEPS), 1.0), tiny.plain("a cat", guidance=1.0).made)


def test_any_number_of_calls_a_step_is_followed_without_branches(tmp_path):
    """A guider of three calls at some steps and two at others, which no family says."""
    skip = diffusers.LayerSkipConfig(indices=[0], fqn="transformer_blocks")
    guider = diffusers.SkipLayerGuidance(
        skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0, skip_layer_config=skip
    )
    tiny = saved("motif", tmp_path, guider=guider)
    model, clock, told = tiny.model(), StepClock(STEPS), []
    model.denoiser.register_forward_pre_hook(lambda *_: told.append((clock.step, clock.branch)))
    latents, plain = sampled(model, "a cat", clock), tiny.plain("a cat")
    assert torch.equal(latents, plain.made)
    assert told == [(step, None) for step in plain.steps] and plain.steps == [0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(UserError, match="quant.per_branch=true is not possible: which branch"):
        StaticMethod(num_time_ranges="per_step", per_branch=True).check_calls(model.family.calls_a_step)


def test_a_transformer_that_nobody_has_described_is_followed_as_well():
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.layers = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])

    family = facts_of(Unknown())
    assert family.calls_a_step is None and family.quantizable == ("layers.*",)


def test_a_scheduler_without_a_step_is_followed_by_timesteps_that_have_no_name(tmp_path):
    """EasyAnimate passes its transformer the timestep by its place. Oracle: the place of the call."""
    model = saved("easyanimate", tmp_path).model(scheduler={"_class_name": "DDIMScheduler"})
    clock, told = StepClock(STEPS), []
    model.denoiser.register_forward_pre_hook(lambda *_: told.append(clock.step))
    sampled(model, "a cat", clock)
    assert told == list(range(STEPS)) and not hasattr(diffusers.DDIMScheduler, "step_index")


def test_a_schedule_of_more_timesteps_than_steps_is_refused(tmp_path):
    tiny = saved("skyreels_v2", tmp_path)
    model = tiny.model(scheduler={"_class_name": "FlowMatchHeunDiscreteScheduler"})
    with pytest.raises(UserError, match="FlowMatchHeunDiscreteScheduler makes 5 timesteps of sampler.steps=3"):
        sampled(model, "a cat", StepClock(STEPS))


def test_pipelines_of_one_prompt_refuse_two(tmp_path):
    model = saved("wan_vace", tmp_path).model()
    model.prepare(["a cat", "a dog"], "cpu")
    with pytest.raises(UserError, match="batch_size=2 must be 1 for WanVACEPipeline"):
        model.sample(
            model.denoiser,
            model.encode(["a cat", "a dog"]),
            PromptNoise(1, range(2), None),
            StepClock(STEPS),
            Sampler(steps=STEPS),
        )


def test_images_and_tensors_are_no_arguments_of_a_configuration(tmp_path):
    model = saved("ltx_condition", tmp_path).model(call={"conditions": "video.mp4"})
    with pytest.raises(UserError, match="model.call.conditions cannot be set: a configuration holds neither images"):
        model.check(Sampler(steps=STEPS))


@pytest.mark.skipif(importlib.util.find_spec("cosmos_guardrail") is not None, reason="the guardrail is installed")
def test_cosmos_without_its_guardrail_is_refused(tmp_path, monkeypatch):
    from diffusers.pipelines.cosmos import pipeline_cosmos2_video2world as module

    tiny = saved("cosmos2", tmp_path, safety_checker=None)

    def missing() -> None:
        raise ImportError("`cosmos_guardrail` is not installed.")

    monkeypatch.setattr(module, "CosmosSafetyChecker", missing)
    with pytest.raises(UserError, match="Cosmos2VideoToWorldPipeline cannot be made .*cosmos_guardrail"):
        tiny.model().check(Sampler(steps=STEPS))


# The table in docs/models.md ------------------------------------------------------------------------------------------

NOT_TRIED = {  # by class, with the reason
    "ConsisIDPipeline": "it needs OpenCV and models that find faces",
}
DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def table() -> str:
    """Every class of diffusers whose call makes or changes videos with a transformer."""
    rows = {name: ("not tried", reason) for name, reason in NOT_TRIED.items()}
    rows |= {_class(each): ("works", "latents, frames and clock are proven") for each in tiny_pipelines.KIN.values()}
    rows |= {_class(each): ("works", "proven in every respect") for each in tiny_pipelines.FAMILIES.values()}
    for name, kind in _pipelines():
        reason = refusal(kind, inspect.signature(kind.__init__).parameters)
        assert (reason is None) == (name in rows), f"{name}: {reason}"
        if reason is not None:
            rows[name] = ("refused", f"a pipeline {reason}")
    lines = [f"| `{name}` | {what} | {why} |" for name, (what, why) in sorted(rows.items())]
    return "\n".join(["| pipeline | | why |", "|---|---|---|", *lines])


def _class(build) -> str:
    return build.__annotations__["return"].removeprefix("diffusers.")


def _pipelines() -> list[tuple[str, type]]:
    found = []
    for name in dir(diffusers):
        if name.endswith("Pipeline") and name not in NOT_TRIED and isinstance(kind := getattr(diffusers, name), type):
            parts, asks = (inspect.signature(each).parameters for each in (kind.__init__, kind.__call__))
            if "transformer" in parts and (set(FRAMES) & set(asks) or any("video" in each for each in asks)):
                found.append((name, kind))
    return found


def test_the_docs_say_of_every_pipeline_whether_it_works():
    assert table() in DOCS.read_text(encoding="utf-8"), f"docs/models.md must have:\n\n{table()}"
