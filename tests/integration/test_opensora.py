"""The path of a user with Open-Sora's files, on files of the same kinds and small sizes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from diffusers import AutoencoderKL
from hydra import compose, initialize_config_dir
from hydra.utils import get_method
from safetensors import safe_open
from transformers import AutoTokenizer, T5EncoderModel

from vdq.commands.run import run
from vdq.data.prompts import load_prompts
from vdq.data.read_video import read_video
from vdq.data.samples import read_sample
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler
from vdq.export import artefact, packed
from vdq.export.sample import main as sample_artefact
from vdq.models.captions import clean
from vdq.models.guidance import Conditions
from vdq.models.stdit import STDiT
from vdq.models.stdit_model import sample_stdit
from vdq.tracking.registry import runs as registry

ROOT = Path(__file__).parents[2]
PARTS = ("autoencoder", "text_encoder")
SETTINGS = ("sampler.steps=2", "logger=csv", "metrics=fidelity")  # the others need published weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def start(tiny_opensora):
    """Runs the program in this process and returns the run folder."""

    def start(runs: Path, *overrides: str) -> Path:
        settings = [*tiny_opensora.overrides, *SETTINGS, f"paths.runs={runs}", *overrides]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return runs / run(compose("config", overrides=settings))

    return start


@pytest.fixture(scope="module")
def finished(start, folder):
    return start(folder, "quant=tsq_tsw", "bits=w6a8")


def test_every_stage_leaves_its_files(finished, folder):
    table = registry(folder).set_index("quant")
    assert list(table.index) == ["fp16", "tsq_tsw"]
    assert 10 < table.loc["tsq_tsw", "psnr"] < 100
    assert table.loc["tsq_tsw", "quantized_layers"] == 26  # 13 a block
    ran = json.loads((finished / "sampling.json").read_text())
    assert ran["peak_memory_gb"].keys() == {"denoising", "decoding"} and ran["quantized_calls"] == 2 * (2 * 24 + 2)
    assert len(list((folder / "cache" / "captions").iterdir())) == 2
    assert len(list((folder / "cache" / "weights").iterdir())) == 1  # the converted .pth


def test_videos_are_those_of_the_parts_put_together_by_hand(finished, folder, tiny_opensora):
    """transformers, diffusers and the bare STDiT, without captions.py, opensora.py and the stages."""
    prompts, files = load_prompts(tiny_opensora.prompts), tiny_opensora.folder
    tokens = AutoTokenizer.from_pretrained(files / "text_encoder")(
        [clean(prompt) for prompt in prompts],
        max_length=20,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    net = STDiT(input_size=(4, 4, 6), hidden_size=48, depth=2, num_heads=4, caption_channels=32, model_max_length=20)
    weights = torch.load(files / "denoiser.pth", weights_only=True)["ema"]
    missing = net.load_state_dict({k: v for k, v in weights.items() if not k.startswith("pos_")}, strict=False)
    assert missing.missing_keys == ["pos_embed", "pos_embed_temporal"] and not missing.unexpected_keys
    autoencoder = AutoencoderKL.from_pretrained(files / "autoencoder", low_cpu_mem_usage=False)
    with torch.inference_mode():
        y = T5EncoderModel.from_pretrained(files / "text_encoder")(**tokens).last_hidden_state[:, None]
        conditions = Conditions(y, net.y_embedder.y_embedding, tokens.attention_mask)
        noise = PromptNoise(42, range(2), (4, 4, 4, 6))
        latents = sample_stdit(net.eval(), conditions, noise, StepClock(2), DDIMSampler(steps=2))
        pixels = torch.stack([autoencoder.decode(frame.transpose(0, 1) / 0.18215).sample for frame in latents])
    expected = ((pixels.clamp(-1, 1) + 1) / 2 * 255).round().movedim(2, -1)

    reference = next(folder.glob("fp16_*"))
    for index in range(2):
        sample = read_sample(reference, index)
        assert (sample["latents"] - latents[index]).norm() / latents[index].norm() < 1e-4  # sums in another order
        assert sample["frames"].shape == (4, 32, 48, 3)
        assert (sample["frames"].float() - expected[index]).abs().max() <= 1  # half a level may round either way
        assert read_video(reference / "videos" / f"{index:04d}.mp4").shape == (4, 32, 48, 3)


def test_a_second_method_uses_what_is_there(start, finished, folder, monkeypatch):
    monkeypatch.setattr("vdq.models.captions.T5EncoderModel.from_pretrained", lambda *_, **__: pytest.fail("T5 loaded"))
    monkeypatch.setattr("vdq.models.checkpoint.torch.load", lambda *_, **__: pytest.fail("the .pth was read"))
    before = [path.stat().st_mtime_ns for path in sorted(folder.glob("fp16_*/samples/*"))]
    second = start(folder, "quant=dynamic", "bits=w6a8")
    assert second.name.startswith("dynamic_w6a8_prompts_")
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("fp16_*/samples/*"))] == before


@pytest.mark.parametrize("stages", ["[calibrate,quantize,sample]", "[benchmark]"])
def test_the_text_encoder_is_gone_before_the_denoiser_is_loaded(start, tmp_path, monkeypatch, stages):
    """Also by a method that needs no calibration."""
    order = []
    for module, name in (("captions.T5EncoderModel", "from_pretrained"), ("opensora", "load_denoiser")):
        target = f"vdq.models.{module}.{name}"
        original = get_method(target)
        monkeypatch.setattr(target, lambda *a, name=name, f=original, **k: (order.append(name), f(*a, **k))[1])
    start(tmp_path, "quant=dynamic", f"stages={stages}")
    assert order == ["from_pretrained", "load_denoiser"]


@pytest.mark.parametrize("weight_sets", ["keep", "packed", "requantize"])
def test_where_weight_sets_live_changes_nothing(start, finished, tmp_path, weight_sets):
    again = start(tmp_path, "quant=tsq_tsw", "bits=w6a8", f"backend.weight_sets={weight_sets}", "stages=[sample]")
    assert again.name == finished.name
    for index in range(2):
        a, b = read_sample(again, index), read_sample(finished, index)
        assert torch.equal(a["latents"], b["latents"]) and torch.equal(a["frames"], b["frames"])


def test_frames_decoded_at_a_time_change_nothing(start, finished, folder, tmp_path):
    again = start(tmp_path, "quant=fp16", "model.decode_frames=3", "stages=[sample]")
    assert again.name == next(folder.glob("fp16_*")).name
    assert torch.equal(read_sample(again, 0)["frames"], read_sample(folder / again.name, 0)["frames"])


def test_half_precision(start, finished, tmp_path):
    half = start(tmp_path, "quant=fp16", "trainer.precision=bf16-true", "stages=[sample]")
    assert json.loads((half / "sampling.json").read_text())["dtype"] == "bfloat16"
    exact, rounded = (read_sample(folder, 0)["latents"] for folder in (finished.parent / half.name, half))
    assert 0 < (exact - rounded).norm() / exact.norm() < 0.05


def test_random_weights_are_marked_and_never_scored(start, tmp_path, caplog):
    run = start(tmp_path, *(f"model.weights.{part}=random" for part in ("denoiser", "text_encoder")), "quant=cw_tw")
    assert run.name.startswith("random_weights_cw_tw_")
    assert "no metric is taken" in caplog.text
    assert len(registry(tmp_path)) == 0 and not list(tmp_path.glob("*/metrics.json"))
    for folder in tmp_path.glob("random_weights_*"):
        note = json.loads((folder / "sampling.json").read_text())["note"]
        assert note == "made with random weights: not a result"
        with safe_open(folder / "samples" / "0000.safetensors", "pt") as sample:
            assert sample.metadata()["note"] == note
        with av.open(str(folder / "videos" / "0000.mp4")) as video:
            assert video.metadata["comment"] == note
    assert next((tmp_path / "cache").glob("stats_*")).name.startswith("stats_random_weights_")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.image_size=[32,40]", "model.image_size=[32, 40] must be two multiples of 16: height, width"),
        ("model.text_dtype=fp16", "model.text_dtype=fp16 must be one of fp32, bf16; T5 overflows in fp16"),
        ("model.decode_dtype=int8", "model.decode_dtype=int8 must be one of"),
        ("model.num_frames=0", "model.num_frames=0"),
        ("model.weights.denoiser=nowhere.pth", "model.weights.denoiser=nowhere.pth"),
    ],
)
def test_refusals(start, tmp_path, override, words):
    with pytest.raises(Exception) as error:
        start(tmp_path, override)
    assert words in str(error.value)
    assert not list(tmp_path.glob("*/samples"))


@pytest.mark.slow
def test_two_processes_sample_each_prompt_once(start, finished, tiny_opensora, tmp_path):
    devices = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    settings = [*tiny_opensora.overrides, *SETTINGS, f"paths.runs={tmp_path}", "quant=tsq_tsw", "bits=w6a8", *devices]
    done = subprocess.run([sys.executable, "run.py", *settings], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    for index in range(2):
        two, one = read_sample(tmp_path / finished.name, index), read_sample(finished, index)
        torch.testing.assert_close(two["latents"], one["latents"], rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / finished.name / "sampling.json").read_text())["quantized_calls"] == 2 * (2 * 24 + 2)


def test_packed_artefact_samples_the_run_without_the_checkpoint(start, folder, finished, tiny_opensora, tmp_path):
    start(folder, "quant=tsq_tsw", "bits=w6a8", "stages=[export]", "export=packed")
    model = packed.load(finished / "export" / "packed")
    weights = model.contents["config"]["model"]["weights"] | {"denoiser": "nobody/nothing/at-all.pth"}
    videos = model.video_model(weights=weights)
    for index, prompt in enumerate(load_prompts(tiny_opensora.prompts)):
        latents = model.sample(videos.encode([prompt]), PromptNoise(42, [index], model.latent_shape))
        assert torch.equal(latents[0], read_sample(finished, index)["latents"])
    assert videos.decode(latents).shape == (1, 4, 32, 48, 3)
    with pytest.raises(ValueError, match="^model: autoencoder random must be the artefact's, [0-9a-f]{64}$"):
        model.video_model(weights=weights | {"autoencoder": "random"})


def test_a_moved_artefact_makes_videos_when_it_is_told_where_the_parts_are(
    start, folder, finished, tiny_opensora, tmp_path, monkeypatch
):
    """On another machine: what the run had stands elsewhere, and its cache cannot be made."""
    start(folder, "quant=tsq_tsw", "bits=w6a8", "stages=[export]", "export=packed")
    moved = shutil.copytree(finished / "export" / "packed", tmp_path / "artefact")
    parts = {part: shutil.copytree(tiny_opensora.folder / part, tmp_path / part) for part in PARTS}
    manifest = json.loads((moved / "manifest.json").read_text())
    config = manifest["contents"]["config"]["model"]
    config["weights"] = {part: f"/nowhere/{part}" for part in config["weights"]}
    config["cache"] = "/proc/nowhere"
    manifest["sha256"] = artefact._own_digest(manifest)
    (moved / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    prompt = load_prompts(tiny_opensora.prompts)[0]
    command = [str(moved), "--prompt", prompt, "--out", "a.mp4"]
    with pytest.raises(SystemExit, match="model.weights.autoencoder=/nowhere/autoencoder must be .*; --weights says"):
        sample_artefact(command)
    sample_artefact([*command, *(f"--weights={part}={path}" for part, path in parts.items())])
    assert read_video(tmp_path / "a.mp4").shape == (4, 32, 48, 3)
    assert (tmp_path / "runs" / "cache").is_dir()
