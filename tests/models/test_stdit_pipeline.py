"""STDiT's models as pipelines of diffusers: called with prompts, saved, loaded, and the same videos every way."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler, IDDPMSampler
from vdq.models.shapes import ShapesModel
from vdq.models.stdit_pipeline import STDiTPipeline

PROMPTS = ["A small red circle moves to the left.", "a blue star"]
STEPS = 2
LOAD_AND_SAMPLE = """
import sys, torch
from safetensors.torch import save_file
from vdq.models.stdit_pipeline import STDiTPipeline
pipeline = STDiTPipeline.from_pretrained(sys.argv[1])
generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
latents = pipeline({prompts}, num_inference_steps={steps}, generator=generators, output_type="latent").frames
save_file({{"latents": latents}}, sys.argv[2])
"""


@pytest.fixture(scope="module")
def model() -> ShapesModel:
    return ShapesModel()


@pytest.mark.parametrize("kind", [DDIMSampler, IDDPMSampler])
def test_a_call_with_prompts_is_what_the_contract_samples(model, kind):
    sampler, clock, noise = kind(steps=STEPS), StepClock(STEPS), PromptNoise(42, [0, 1], model.latent_shape)
    expected = model.sample(model.denoiser, model.encode(PROMPTS), noise, clock, sampler)
    again = PromptNoise(42, [0, 1], model.latent_shape)
    given = {"latents": again.initial(), "step_noise": again.next, "num_inference_steps": STEPS}
    pipeline = model.pipeline(sampler)
    assert torch.equal(pipeline(PROMPTS, **given, output_type="latent").frames, expected)
    again.initial()  # starts the streams anew
    frames = pipeline(PROMPTS, **given).frames
    assert frames.shape == (2, 16, 64, 64, 3)
    np.testing.assert_allclose(frames * 255, model.decode(expected).numpy(), atol=1e-4)


def test_the_callback_gets_every_step_and_may_change_the_latents(model):
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((step, timestep, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = model.pipeline(DDIMSampler())(
        PROMPTS[0],
        num_inference_steps=3,
        output_type="latent",
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["latents", "noise_pred"],
    ).frames
    assert seen == [(step, timestep, ["latents", "noise_pred"]) for step, timestep in enumerate((999, 500, 0))]
    assert not latents.any() and latents.shape == (1, *model.latent_shape)


@pytest.mark.parametrize("kind", [DDIMSampler, IDDPMSampler])
def test_a_saved_pipeline_gives_the_same_latents_in_another_process(model, kind, tmp_path):
    pipeline = model.pipeline(kind())
    pipeline.save_pretrained(tmp_path / "saved")
    code = LOAD_AND_SAMPLE.format(prompts=PROMPTS, steps=STEPS)
    subprocess.run([sys.executable, "-c", code, tmp_path / "saved", tmp_path / "latents.safetensors"], check=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    latents = pipeline(PROMPTS, num_inference_steps=STEPS, generator=generators, output_type="latent").frames
    assert torch.equal(load_file(tmp_path / "latents.safetensors")["latents"], latents)


def test_a_loaded_pipeline_has_the_same_tensors(model, tmp_path):
    model.pipeline(DDIMSampler()).save_pretrained(tmp_path)
    loaded = STDiTPipeline.from_pretrained(tmp_path)
    for ours, theirs in ((model.denoiser, loaded.transformer), (model.autoencoder, loaded.vae)):
        state = theirs.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    assert loaded.scheduler.config.num_train_timesteps == 1000 and loaded.config.scaling_factor == model.scaling_factor


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "a star", "output_type": "pil"}, "output_type=pil must be np or latent"),
        ({}, "either prompt or prompt_embeds"),
        ({"prompt": "a star", "prompt_embeds": torch.zeros(1, 1, 24, 128)}, "either prompt or prompt_embeds"),
    ],
)
def test_wrong_calls_are_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        model.pipeline(DDIMSampler())(**given)
