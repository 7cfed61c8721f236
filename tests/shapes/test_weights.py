"""The weights that ship with the package are complete, small, as their cards say, and good enough to judge by."""

import hashlib
import json

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch.nn.functional import normalize

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler
from vdq.models.shapes import WEIGHTS, ShapesModel
from vdq.shapes.clip import ShapesClip
from vdq.shapes.render import render
from vdq.shapes.scenes import prompts, split

SAMPLER = {"steps": 20, "guidance_scale": 7.0, "guidance_channels": 3}


def test_files_are_those_of_the_cards_and_small():
    listed = {}
    for part in ("autoencoder", "clip", "latents", "denoiser", "dover"):
        listed |= json.loads((WEIGHTS / f"{part}.json").read_text())["sha256"]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in WEIGHTS.glob("*.safetensors")}
    assert found == listed and len(found) == 5
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 40e6


def test_the_autoencoder_reconstructs_held_out_renderings():
    model = ShapesModel()
    scores = []
    for number, scene in enumerate(split()["evaluation"][::6]):
        frames = torch.from_numpy(render(scene, np.random.default_rng(number)))
        pixels = frames.movedim(-1, 1).float() / 127.5 - 1
        latents = model.autoencoder.encode(pixels).latent_dist.mode().transpose(0, 1)[None] * model.scaling_factor
        assert 0.5 < latents.std() < 2
        scores.append(peak_signal_noise_ratio(frames.numpy(), model.decode(latents)[0].numpy()))
    assert np.mean(scores) > 25


def test_the_judge_recognizes_held_out_renderings():
    """Real renderings of scenes that it has not been trained on: top-1 by CLIPSIM among the 48 prompts."""
    clip = ShapesClip()
    texts = normalize(clip.encode_text(prompts("evaluation")), dim=-1)
    hits = []
    for number, scene in enumerate(split()["evaluation"]):
        for take in range(4):
            frames = torch.from_numpy(render(scene, np.random.default_rng([number, take, 2])))
            similarity = normalize(clip.encode_images(frames), dim=-1) @ texts.T
            hits.append(similarity.mean(0).argmax().item() == number)
    assert np.mean(hits) >= 0.95


@pytest.mark.slow
def test_full_precision_samples_show_their_prompts():
    """At least 80 % of the 48 sampled videos have the highest CLIPSIM with their own prompt."""
    model, clip, names = ShapesModel(), ShapesClip(), prompts("evaluation")
    texts = normalize(clip.encode_text(names), dim=-1)
    clock = StepClock(20)
    hits = []
    for start in range(0, 48, 8):
        indices = list(range(start, start + 8))
        noise = PromptNoise(42, indices, model.latent_shape)
        conditions = model.encode([names[index] for index in indices])
        latents = model.sample(model.denoiser, conditions, noise, clock, DDIMSampler(**SAMPLER))
        for index, video in zip(indices, model.decode(latents), strict=True):
            similarity = normalize(clip.encode_images(video), dim=-1) @ texts.T
            hits.append(similarity.mean(0).argmax().item() == index)
    assert np.mean(hits) >= 0.8


def test_a_missing_folder_is_named():
    with pytest.raises(ValueError, match="model.weights=nowhere has no file latents.json"):
        ShapesModel("nowhere")


def test_a_file_that_is_no_judge_is_named(tmp_path):
    (tmp_path / "clip.safetensors").write_bytes(bytes(100))
    for path in (tmp_path / "clip.safetensors", WEIGHTS / "denoiser.safetensors"):
        with pytest.raises(ValueError, match=f"^metrics.clip.encoder.weights={path} holds no weights of shapes-clip"):
            ShapesClip(path)
