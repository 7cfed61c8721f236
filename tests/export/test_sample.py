"""`python -m vdq.export.sample` on a packed folder; test_onnx_models.py has the other kind."""

import json

import pytest
import torch

from vdq.backends.fake_quant import FakeQuantBackend
from vdq.data.read_video import read_video
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler
from vdq.export import artefact, packed
from vdq.export.base import QuantizedRun
from vdq.export.sample import main, places, sample
from vdq.methods.dynamic import DynamicMethod
from vdq.models.shapes import ShapesModel
from vdq.quant.convert import apply

PROMPT, STEPS = "A small red circle moves from left to right on a white background.", 2


@pytest.fixture(scope="module")
def run():
    """The shipped testbed with a method that needs no calibration."""
    model = ShapesModel()
    method = DynamicMethod(weight_bits=8, act_bits=8)
    config = {
        "model": {"_target_": "vdq.models.shapes.ShapesModel"},
        "sampler": {"_target_": "vdq.diffusion.samplers.DDIMSampler", "steps": STEPS},
        "quant": {"_target_": "vdq.methods.dynamic.DynamicMethod", "name": "dynamic"},
        "backend": {"_target_": "vdq.backends.fake_quant.FakeQuantBackend"},
        "seed": 42,
    }
    return QuantizedRun(
        name="dynamic",
        signature="0",
        model=model,
        denoiser=model.denoiser,
        state=method.convert(model.denoiser, None, num_steps=STEPS, quantizable=model.quantizable),
        sampler=DDIMSampler(steps=STEPS),
        backend=FakeQuantBackend(),
        config=config,
    )


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("artefact") / "packed"
    artefact.write(packed.PackedExporter(), run, path)
    return path


def test_frames_are_those_of_the_model_that_was_exported(run, folder):
    clock = StepClock(STEPS)
    denoiser = apply(run.denoiser, run.state, clock, run.backend)
    with torch.inference_mode():
        conditions, noise = run.model.encode([PROMPT]), PromptNoise(7, [0], run.model.latent_shape)
        expected = run.model.decode(run.model.sample(denoiser, conditions, noise, clock, run.sampler))[0]
    frames, fps = sample(packed.load(folder), PROMPT, seed=7)
    assert torch.equal(frames, expected) and fps == run.model.fps


def test_command_writes_a_video(folder, tmp_path, capsys):
    main([str(folder), "--prompt", PROMPT, "--seed", "7", "--out", str(tmp_path / "a.mp4")])
    assert read_video(tmp_path / "a.mp4").shape == (16, 64, 64, 3)
    assert "16 frames, seed 7" in capsys.readouterr().out


def test_another_kind_is_refused(folder, tmp_path):
    manifest = json.loads((folder / artefact.MANIFEST).read_text())
    manifest["kind"] = "zip"
    manifest["sha256"] = artefact._own_digest(manifest)
    (tmp_path / artefact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match="^error: .*kind=zip cannot be loaded; packed is allowed$"):
        main([str(tmp_path), "--prompt", PROMPT])


LARGE = {"weights": {"denoiser": "/a/x.pth", "autoencoder": "/a/vae", "text_encoder": "/a/t5"}, "cache": "/root/a"}


def test_parts_of_a_large_model_are_told_one_by_one_and_its_cache_is_here(tmp_path):
    changes = places(LARGE, ["text_encoder=/b/t5=1"], str(tmp_path / "cache"))
    assert changes["weights"] == LARGE["weights"] | {"text_encoder": "/b/t5=1"}
    assert changes["cache"] == str(tmp_path / "cache")
    assert places({"weights": None}, ["folder"], None) == {"weights": "folder"}


@pytest.mark.parametrize(
    ("config", "weights", "cache", "sentence"),
    [
        (LARGE, ["/b"], None, "--weights=/b must be PART=PATH, with PART one of autoencoder, text_encoder"),
        (LARGE, ["denoiser=/b"], None, "--weights=denoiser=/b must be PART=PATH"),
        (LARGE, [], "/proc/x", "--cache=/proc/x must be a folder that can be written"),
        ({"weights": None}, ["a", "b"], None, "--weights is given 2 times"),
        ({"weights": None}, [], "x", "--cache=x has no use"),
    ],
)
def test_places_that_fit_no_model_are_refused(config, weights, cache, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        places(config, weights, cache)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--threads", "0"], "--threads=0 must be in 1.."),
        (["--threads", "1000000"], "--threads=1000000 must be in 1.."),
        (["--out", 250 * "x" + ".mp4"], "--out=x+.mp4 is no name of a file or folder: File name too long"),
        (["--out", 300 * "x" + ".mp4"], "--out=x+.mp4 is no name of a file or folder: File name too long"),
        (["--out", "/proc/nowhere/a.mp4"], "--out: its folder=/proc/nowhere must be a folder that can be written"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_sampled(folder, monkeypatch, arguments, sentence):
    monkeypatch.setattr("vdq.export.sample.load", lambda *_, **__: pytest.fail("an artefact was loaded"))
    with pytest.raises(SystemExit, match=f"^error: {sentence}"):
        main([str(folder), "--prompt", PROMPT, *arguments])
