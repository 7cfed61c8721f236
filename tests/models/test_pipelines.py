"""Pipelines of diffusers as video models: driven from outside, they compute what they compute alone."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_pipelines
from vdq.diffusion.clock import CONDITIONAL, UNCONDITIONAL, StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler, Sampler
from vdq.errors import UserError
from vdq.models.image_prompt import ImagePrompt
from vdq.models.pipelines.model import DiffusersModel
from vdq.quant.layers import linear_modules
from vdq.quant.observers import Observer

NAMES = sorted(tiny_pipelines.FAMILIES)
PROMPTS = ["a cat", "a red dog"]
BROKEN = {"pipeline": "WanPipeline", "transformer": {"_class_name": "WanTransformer3DModel", "num_layers": "two"}}
STEPS, GUIDANCE = 4, 4.0
IMAGES = {"wan_i2v", "cogvideox_i2v", "ltx_i2v"}
ONE_PROMPT = {"latte", *IMAGES}  # cuts the text to its length; has one image a call
TWO_CALLS = {"wan", "wan2_2", "wan_i2v", "hunyuan_video_1_5"}
WITHOUT_CALLBACK = "hunyuan_video_1_5"  # its guidance is a component, and its call takes no callback
LINEARS = {  # of a block, as counted in the source of diffusers; Latte's two kinds of blocks have 10 and 6
    "wan": 20,
    "wan2_2": 40,
    "cogvideox": 12,
    "cogvideox_i2v": 12,
    "ltx_i2v": 20,
    "wan_i2v": 20,
    "ltx": 20,
    "hunyuan_video": 17,
    "hunyuan_video_1_5": 12,
    "latte": 16,
    "mochi": 21,
    "allegro": 20,
}


@dataclass(frozen=True)
class Tiny:
    """One family's pipeline, as files."""

    name: str
    folder: Path
    cache: Path

    def model(self, **changes) -> DiffusersModel:
        settings = {"pretrained": str(self.folder), "cache": str(self.cache), "tiled": self.name == "allegro"}
        settings |= {"call": tiny_pipelines.CALLS[self.name], "dtype": "fp32"}
        return DiffusersModel(**settings | changes)

    def plain(self) -> diffusers.DiffusionPipeline:
        """The pipeline as anybody would load it."""
        pipeline = tiny_pipelines.loaded(self.folder)
        if self.name == "allegro":
            pipeline.vae.enable_tiling()
        return pipeline

    def call(self, pipeline, prompts: list[str], seed: int = 1, output_type: str = "latent", after=None, **named):
        """What a plain call makes; after(step) is called when a step is done."""
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": output_type}
        settings["generator"] = PromptNoise(seed, range(len(prompts)), None).generators()
        if self.name == WITHOUT_CALLBACK:
            pipeline.guider = pipeline.guider.new(guidance_scale=settings.pop("guidance_scale"))
            step = type(pipeline.scheduler).step.__get__(pipeline.scheduler)
            done = iter(range(STEPS))
            pipeline.scheduler.step = lambda *args, **kw: (step(*args, **kw), after and after(next(done)))[0]
        elif after is not None:
            settings["callback_on_step_end"] = lambda pipeline, step, timestep, tensors: after(step) or {}
        if self.name in IMAGES:
            settings["image"] = prompts[0].opened()
        prompts = list(map(str, prompts))
        return pipeline(prompt=prompts, **settings | tiny_pipelines.CALLS[self.name] | named).frames

    @property
    def both(self) -> list[str]:
        """Two prompts, with images where the pipeline takes them."""
        if self.name not in IMAGES:
            return PROMPTS
        found = []
        for number, prompt in enumerate(PROMPTS):
            path = self.cache.parent / f"{number}.png"
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            found.append(ImagePrompt(prompt, path))
        return found

    @property
    def prompts(self) -> list[str]:
        """As many of them as may be in one batch."""
        return self.both[:1] if self.name in ONE_PROMPT else self.both


@pytest.fixture(scope="session", params=NAMES)
def tiny(request, tmp_path_factory) -> Tiny:
    folder = tmp_path_factory.mktemp(request.param)
    return Tiny(request.param, tiny_pipelines.save(request.param, folder / "pipeline"), folder / "cache")


@pytest.fixture
def wan(tmp_path_factory) -> Tiny:
    folder = tmp_path_factory.mktemp("wan")
    return Tiny("wan", tiny_pipelines.save("wan", folder / "pipeline"), folder / "cache")


def sampled(
    model: DiffusersModel, prompts: list[str], clock: StepClock | None = None, denoiser=None, **named
) -> Tensor:
    sampler = Sampler(steps=STEPS, guidance_scale=GUIDANCE)
    model.prepare(prompts, "cpu")
    noise = PromptNoise(1, range(len(prompts)), None)
    net = model.denoiser if denoiser is None else denoiser
    return model.sample(net, model.encode(prompts), noise, clock or StepClock(STEPS), sampler, **named)


def test_latents_and_frames_are_those_of_the_plain_pipeline_bit_for_bit(tiny):
    model = tiny.model()
    model.check(Sampler(steps=STEPS, guidance_scale=GUIDANCE))
    latents = sampled(model, tiny.prompts)
    assert torch.equal(latents, tiny.call(tiny.plain(), tiny.prompts))
    frames = tiny.call(tiny.plain(), tiny.prompts[:1], output_type="np")
    own = model.decode(sampled(model, tiny.prompts[:1]))
    assert own.dtype == torch.uint8 and np.array_equal(own, (np.asarray(frames) * 255).round().astype(np.uint8))


def test_the_clock_is_where_the_pipelines_own_callback_is(tiny):
    """Oracle: what the plain pipeline's callback says after the calls of a step."""
    model, clock, told, expected = tiny.model(), StepClock(STEPS), [], []
    experts = [model.denoiser] if len(model.denoisers) == 1 else list(model.denoiser.values())
    for number, expert in enumerate(experts):
        expert.register_forward_pre_hook(lambda *_, n=number: told.append((clock.step, n, clock.branch)))
    sampled(model, tiny.prompts[:1], clock)
    plain, calls = tiny.plain(), []
    for number, name in enumerate(model.denoisers):
        getattr(plain, name).register_forward_pre_hook(lambda *_, n=number: calls.append(n))

    def after(step: int) -> None:
        branches = (CONDITIONAL, UNCONDITIONAL) if tiny.name in TWO_CALLS else (None,)
        expected.extend((step, number, branch) for number, branch in zip(calls, branches, strict=True))
        calls.clear()

    tiny.call(plain, tiny.prompts[:1], after=after)
    assert told == expected
    windows = model.windows(Sampler(steps=STEPS))
    for number, name in enumerate(model.denoisers):
        assert sorted({step for step, n, _ in expected if n == number}) == list(windows[name])


def test_timesteps_are_those_of_the_calls(tiny):
    model, seen = tiny.model(), []
    experts = [model.denoiser] if len(model.denoisers) == 1 else list(model.denoiser.values())
    for expert in experts:
        expert.register_forward_pre_hook(
            lambda _, args, named: seen.append(float(named["timestep"].max())), with_kwargs=True
        )
    sampled(model, tiny.prompts[:1])
    told = model.timesteps(Sampler(steps=STEPS, guidance_scale=GUIDANCE))
    scale = seen[0] / float(told[0])  # Mochi gives 1000 - t
    assert tiny.name == "mochi" or scale == pytest.approx(1)
    assert len(told) == STEPS and len(dict.fromkeys(seen)) == STEPS
    if tiny.name != "mochi":
        assert list(dict.fromkeys(seen)) == pytest.approx(told.tolist())


def test_every_linear_of_a_block_is_quantizable_and_nothing_else(tiny):
    model = tiny.model()
    chosen = [fqn for fqn, _ in linear_modules(model.structure) if model.quantizable(fqn)]
    assert len(chosen) == LINEARS[tiny.name]
    assert not any("norm" in fqn or "embed" in fqn for fqn in chosen)
    assert all(parameter.is_meta for parameter in model.structure.parameters())


def test_linears_that_compute_the_same_change_no_bit(tiny):
    class Same(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.linear.weight, self.linear.bias)

    model = tiny.model()
    before = sampled(model, tiny.prompts[:1])
    for fqn, linear in [*linear_modules(model.denoiser)]:
        if model.quantizable(fqn):
            model.denoiser.set_submodule(fqn, Same(linear))
    assert torch.equal(sampled(model, tiny.prompts[:1]), before)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_statistics_are_those_of_hooks_in_the_plain_pipeline(tiny, batch_size):
    """Oracle: inputs that hooks of this test see in plain calls, prompt by prompt."""
    model, clock, seen = tiny.model(), StepClock(STEPS), {}
    if batch_size > len(tiny.prompts):
        pytest.skip("this pipeline encodes prompts one by one")
    model.prepare(tiny.both, "cpu")
    with Observer(model.denoiser, clock, model.quantizable, model.packed) as observer:
        for first in range(0, 2, batch_size):
            indices = range(first, first + batch_size)
            prompts = [tiny.both[index] for index in indices]
            sampler = Sampler(steps=STEPS, guidance_scale=GUIDANCE)
            model.sample(model.denoiser, model.encode(prompts), PromptNoise(1, indices, None), clock, sampler)
    stats = observer.stats(num_prompts=2, window=lambda fqn: model.window(fqn, Sampler(steps=STEPS)))
    plain = tiny.plain()
    step = {"now": 0}
    for name in model.denoisers:
        for fqn, linear in linear_modules(getattr(plain, name)):
            full = f"{name}.{fqn}" if len(model.denoisers) > 1 else fqn
            linear.register_forward_pre_hook(
                lambda _, args, full=full: seen.setdefault((full, step["now"]), []).append(args[0])
            )

    def after(index: int) -> None:
        step["now"] = index + 1

    for index, prompt in enumerate(tiny.both):
        step["now"] = 0
        generator = PromptNoise(1, [index], None).generators()
        tiny.call(plain, [prompt], generator=generator, after=after)
    assert set(stats.layers) == {fqn for fqn, _ in linear_modules(model.structure) if model.quantizable(fqn)}
    for fqn, layer in stats.layers.items():
        for number in model.window(fqn, Sampler(steps=STEPS)):
            rows = [x.reshape(len(x), -1, x.shape[-1]) for x in seen[fqn, number]]
            highest = torch.stack([x.amax((0, 1)) for x in rows]).amax(0)
            lowest = torch.stack([x.amin((0, 1)) for x in rows]).amin(0)
            absmax = torch.cat([x.abs().amax(1) for x in rows]).mean(0)
            for found, expected in ((layer.max, highest), (layer.min, lowest), (layer.absmax, absmax)):
                torch.testing.assert_close(found[number], expected, rtol=2e-3, atol=2e-4)


def test_encoded_prompts_need_no_text_encoder(wan):
    model, expected = wan.model(), sampled(wan.model(), PROMPTS)
    assert model.prepare(PROMPTS, "cpu") == 0  # the files of another model of the same weights
    for part in ("text_encoder", "tokenizer"):
        for path in (wan.folder / part).iterdir():
            path.unlink()
    assert torch.equal(sampled(model, PROMPTS), expected)
    with pytest.raises(UserError, match="the text encoder cannot be read"):
        model.prepare(["a new prompt"], "cpu")


def test_images_of_one_text_are_encoded_each(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan_i2v")
    tiny = Tiny("wan_i2v", tiny_pipelines.save("wan_i2v", folder / "pipeline"), folder / "cache")
    first, second = (ImagePrompt("a cat", prompt.image) for prompt in tiny.both)
    model = tiny.model()
    assert model.prepare([first, second], "cpu") == 2
    assert not torch.equal(sampled(model, [first]), sampled(model, [second]))
    with pytest.raises(UserError, match="batch_size=2 must be 1 for videos of images"):
        sampled(model, [first, second])


def test_another_process_gets_the_model(wan):
    model = wan.model()
    latents = sampled(model, PROMPTS[:1])
    assert torch.equal(sampled(pickle.loads(pickle.dumps(model)), PROMPTS[:1]), latents)


def test_a_changed_scheduler_is_that_of_a_plain_pipeline_with_it(wan):
    model = wan.model(scheduler={"flow_shift": 5.0})
    plain = wan.plain()
    plain.scheduler = diffusers.UniPCMultistepScheduler.from_config(plain.scheduler.config, flow_shift=5.0)
    latents = sampled(model, PROMPTS[:1])
    assert torch.equal(latents, wan.call(plain, PROMPTS[:1]))
    euler = wan.model(scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    plain.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(plain.scheduler.config, shift=3.0)
    assert torch.equal(sampled(euler, PROMPTS[:1]), wan.call(plain, PROMPTS[:1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"call": {"hight": 32}}, "model.call.hight is no argument of WanPipeline; .*; did you mean height?"),
        ({"call": {"num_inference_steps": 3}}, "model.call.num_inference_steps cannot be set there: sampler.steps"),
        ({"call": {"prompt": "x"}}, "model.call.prompt cannot be set there: dataset says it"),
        ({"call": {"height": 33, "width": 32}}, "have to be divisible by 16 but are 33"),
        ({"call": {"height": 32, "width": 32, "num_frames": 6}}, "has to be divisible by 4"),
        ({"call": {"height": 0, "width": 32}}, "model.call.height=0 must be an integer in 1..1048576"),
        ({"call": {"num_frames": True}}, "model.call.num_frames=True must be an integer"),
        ({"quantizable": []}, "must have at least one pattern; null is all linears of the blocks"),
        ({"gigabytes": -1}, "model.gigabytes=-1 must be at least 0"),
        ({"structure": {"pipeline": "NoPipeline"}}, "model.structure.pipeline=NoPipeline must be a class of diffusers"),
        ({"structure": {"pipeline": "WanPipeline", "vae": {}}}, "model.structure.vae._class_name=None must be a class"),
        (
            {"pretrained": "random", "structure": BROKEN},
            "^model.structure.transformer cannot be built",
        ),
        ({"scheduler": {"shifft": 3}}, "model.scheduler.shifft is no field of UniPCMultistepScheduler"),
        ({"scheduler": {"_class_name": "AutoModel"}}, "model.scheduler._class_name=AutoModel must be a scheduler"),
        ({"quantizable": ["block.*"]}, "'block.*' matches no linear of the model"),
        ({"dtype": "int8"}, "model.dtype=int8 must be one of fp32, fp16, bf16"),
        ({"pretrained": "random"}, "model.pretrained=random needs model.structure"),
        ({"pretrained": "/nowhere"}, "model.pretrained=/nowhere must be an existing local folder or owner/name"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(wan, changes, message):
    with pytest.raises(UserError, match=message):
        wan.model(**changes).check(Sampler(steps=STEPS))


def test_samplers_of_open_sora_are_refused(wan):
    with pytest.raises(UserError, match="sampler=DDIMSampler is Open-Sora's"):
        wan.model().check(DDIMSampler(steps=STEPS))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "makes no videos"),
        ({"_class_name": "SkyReelsV2DiffusionForcingPipeline"}, "gives every frame a timestep of its own"),
        ({"_class_name": "LucyEditPipeline"}, "whose call needs video: it gets prompts and images only"),
        ({"_class_name": "LTX2Pipeline"}, "which makes sound as well"),
        (
            {"_class_name": "HeliosPipeline"},
            "piece by piece .num_latent_frames_per_chunk., each with the whole schedule",
        ),
        ({"_class_name": "StableVideoDiffusionPipeline", "transformer": [None, None]}, "without a transformer"),
        ({"_class_name": "NoPipeline"}, "is a NoPipeline, which diffusers .* lacks"),
    ],
)
def test_pipelines_that_cannot_work_are_refused_with_the_reason(wan, index, message):
    path = wan.folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    with pytest.raises(UserError, match=message):
        wan.model().check(Sampler(steps=STEPS))


def changed_weights(folder: Path, change) -> None:
    path = next((folder / "transformer").glob("*.safetensors"))
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for kind in ("weight", "bias"):
        parts = [tensors.pop(f"blocks.0.attn1.to_{name}.{kind}") for name in "qkv"]
        tensors[f"blocks.0.attn1.to_qkv.{kind}"] = torch.cat(parts)
    return tensors


def test_weights_that_do_not_fit_are_refused(wan):
    changed_weights(wan.folder, fused)
    with pytest.raises(UserError, match="8 tensors of transformer do not fit WanTransformer3DModel, .* taken apart"):
        _ = wan.model().denoiser


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "pytorch_lora_weights.safetensors",
            b"",
            "has pytorch_lora_weights.safetensors beside it, which is not applied",
        ),
        ("transformer/diffusion_pytorch_model.safetensors", b"no tensors", "transformer cannot be read"),
        ("transformer/diffusion_pytorch_model.safetensors", None, "transformer cannot be read"),
        ("transformer/config.json", None, "lacks transformer/config.json, a pipeline of diffusers has it"),
        ("transformer/config.json", b"{", "cannot be read as JSON"),
        ("model_index.json", None, "lacks model_index.json"),
    ],
)
def test_files_that_cannot_be_read_are_named(wan, file, content, message):
    path = wan.folder / file
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        _ = wan.model().denoiser


def test_a_model_that_is_quantized_already_is_refused(wan):
    path = wan.folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(UserError, match="transformer is quantized already"):
        _ = wan.model().denoiser


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloaded_denoisers_compute_the_same(tmp_path_factory, offload):
    """On a CPU, where nothing really moves; no GPU was at hand."""
    folder = tmp_path_factory.mktemp("wan2_2")
    tiny = Tiny("wan2_2", tiny_pipelines.save("wan2_2", folder / "pipeline"), folder / "cache")
    expected = sampled(tiny.model(), PROMPTS[:1])
    model = tiny.model(offload=offload)
    for _ in range(2):  # what it did the first time is undone
        assert torch.equal(sampled(model, PROMPTS[:1]), expected)


def test_a_structure_that_is_not_the_published_one_is_refused(wan, monkeypatch):
    """A repository on the Hub is named by its structure before its files are here; they then have the last word."""
    published = wan.model()._published
    parts = {name: {"_class_name": published.components[name][1]} for name in ("transformer", "vae", "scheduler")}
    parts = {name: part | published.config(name) for name, part in parts.items()}
    structure = {"pipeline": "WanPipeline", **parts, "tokenizer": ["transformers", "AutoTokenizer"]}
    monkeypatch.setattr("vdq.models.pipelines.published.find_folder", lambda *_: wan.folder)
    named = {"pretrained": "owner/name", "structure": structure}
    assert isinstance(wan.model(**named).denoiser, diffusers.WanTransformer3DModel)
    structure["scheduler"] = structure["scheduler"] | {"flow_shift": 9.0}
    with pytest.raises(UserError, match="model.structure.scheduler.flow_shift=9.0 must be 3.0, as owner/name has it"):
        _ = wan.model(**named).denoiser
