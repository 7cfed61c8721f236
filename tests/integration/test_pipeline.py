"""One command does the whole job and leaves a run folder that says what was done."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pytorch_lightning.accelerators import CUDAAccelerator
from safetensors.torch import load_file

from vdq import machine
from vdq.shapes.scenes import prompts


@pytest.fixture(scope="module")
def scored(finished, tmp_path_factory):
    """The finished runs with all metrics."""
    runs = tmp_path_factory.mktemp("scored") / "runs"
    shutil.copytree(finished.runs, runs)
    bed = replace(finished, runs=runs)
    bed.run("quant=tsq_tsw")
    return bed


@pytest.fixture(scope="module")
def folder(scored) -> Path:
    return next(scored.runs.glob("tsq_tsw_w8a8_*"))


def read(path: Path):
    return json.loads(path.read_text())


def test_folder_is_named_by_method_bits_prompts_and_signature(folder):
    name, _, signature = folder.name.rpartition("_")
    assert name == "tsq_tsw_w8a8_shapes"
    assert signature == read(folder / "result.json")["signature"]


def test_config_is_resolved_and_complete(folder, scored):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["quant"]["weight_bits"] == 8 and config["sampler"]["steps"] == 2
    assert config["model"]["weights"] == str(scored.weights)
    assert "${" not in (folder / "config.yaml").read_text()


def test_manifest_says_what_ran_and_what_produced_it(folder):
    manifest = read(folder / "manifest.json")
    execution = manifest["execution"]
    assert execution["arithmetic"] == "fake_quant (simulated)"
    assert (execution["dtype"], execution["device"], execution["devices"]) == ("float32", "cpu", 1)
    # 6 blocks of 13 linears (q, k, v counted singly), called at each of 2 steps of one batch; cross_attn.kv_linear once
    assert execution["quantized_layers"] == 78
    assert execution["quantized_calls"] == 72 * 2 + 6
    assert execution["videos"] == 2 and execution["seconds"] > 0
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0] and "python" in manifest["versions"]
    assert manifest["git"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", manifest["git"])
    assert manifest["result"]["signature"] == folder.name.rpartition("_")[2]
    assert {"reference", "stats", "assets"} <= manifest["result"].keys()
    assert manifest["result"]["processor"] == manifest["result"]["scored_on"] == machine.processor("cpu")


def test_full_precision_run_quantizes_nothing(folder, scored):
    reference = next(scored.runs.glob("fp16_*"))
    execution = read(reference / "manifest.json")["execution"]
    assert (execution["quantized_layers"], execution["quantized_calls"]) == (0, 0)
    result = read(reference / "result.json")
    assert result["integer_gmacs"] == 0 < result["float_gmacs"] and result["bits_per_weight"] is None
    assert result["size_mb_fp16"] == result["size_mb"] / 2
    assert execution["arithmetic"] == "full precision" and execution["dtype"] == "float32"
    assert read(folder / "result.json")["reference"] == read(reference / "result.json")["signature"]
    assert not (reference / "quant_state.safetensors").exists()


def test_report_names_every_layer_and_why_it_stays(folder):
    report = pd.read_csv(folder / "report.csv").set_index("fqn")
    quantized = report[report["kind"] == "static"]
    kept = report[report["kind"] == "full_precision"]
    assert (len(report), len(quantized)) == (85, 78)
    assert len(quantized) + len(kept) == len(report)
    assert {f"blocks.{b}.attn.{part}" for b in range(6) for part in "qkv"} <= set(quantized.index)
    assert (quantized[["weight_bits", "act_bits"]] == 8).all(axis=None)
    assert (quantized["act_ranges"] == 2).all()  # one for each step
    assert quantized["weight_error"].between(0, 0.1, inclusive="neither").all()
    assert kept["reason"].str.len().gt(0).all()
    assert {"t_block.1", "final_layer.linear", "x_embedder.proj"} <= set(kept.index)


def test_videos_are_mp4_and_lossless(folder):
    decord = pytest.importorskip("decord")
    for index in range(2):
        sample = load_file(folder / "samples" / f"{index:04d}.safetensors")
        assert sample["latents"].shape == (4, 16, 8, 8)
        video = decord.VideoReader(str(folder / "videos" / f"{index:04d}.mp4"))
        frames = video.get_batch(range(len(video))).asnumpy()
        assert frames.shape == sample["frames"].shape == (16, 64, 64, 3)
        pictures = np.corrcoef(frames.ravel(), sample["frames"].numpy().ravel())
        assert pictures[0, 1] > 0.7  # the same, compressed; these random weights make noise, on which the codec loses
        assert video.get_avg_fps() == 8


def test_scores_of_each_video_and_of_the_set(folder):
    values = read(folder / "metrics.json")["values"]
    table = pd.read_csv(folder / "per_video.csv")
    assert table["index"].tolist() == [0, 1]
    assert table["prompt"].tolist() == prompts("evaluation")[:2]
    assert {"clipsim", "clip_temp", "psnr", "ssim", "latent_rel_l2"} <= values.keys()
    for name, value in values.items():
        assert table[name].mean() == pytest.approx(value, abs=1e-9)
    assert 20 < values["psnr"] < 100 and 0 < values["latent_rel_l2"] < 0.1  # quantized, yet close to the reference


def test_result_holds_identity_and_scores(folder):
    result = read(folder / "result.json")
    assert (result["quant"], result["bits"], result["kind"], result["alpha"]) == ("tsq_tsw", "w8a8", "static", 0.5)
    assert (result["weight_bits"], result["act_bits"], result["quantized_layers"]) == (8, 8, 78)
    # 6 blocks of width 128; 16 frames of 16 tokens pass 18 times 128 x 128 weights, 24 of a caption two
    assert result["integer_gmacs"] == 6 * 128**2 * (18 * 16 * 16 + 2 * 24) / 1e9
    assert 0 < result["float_gmacs"] < 0.1 * result["integer_gmacs"] and result["rotation_gadds"] == 0
    operations = 64 * result["integer_gmacs"] + 256 * result["float_gmacs"]
    assert result["bit_tops"] == pytest.approx(operations / 1e3)
    assert 8 < result["bits_per_weight"] < 20 and result["size_mb_fp16"] < result["size_mb"]
    assert result["assets"].keys() == {"shapes-clip", "shapes-dover"} and len(result["assets"]["shapes-clip"]) == 64
    assert read(folder / "metrics.json")["values"].items() <= result.items()
    assert {"samples", "statistics", "quant.tsq_tsw", "backend.fake_quant", "metrics.clip"} <= result["versions"].keys()


def test_nothing_half_written_is_left(scored):
    assert not [path for path in scored.runs.rglob("*") if path.suffix in {".part", ".tmp"}]


def test_prints_a_table_of_both_runs(scored, capsys):
    folder = scored.run("quant=tsq_tsw")
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:]] == ["fp16", "tsq_tsw"]
    assert rows[3][-1].strip(" `") == folder.name.rpartition("_")[2]


@pytest.mark.slow
def test_shows_progress_results_and_nothing_that_libraries_say_to_programmers(testbed, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))
    bed = replace(testbed, settings=("sampler.steps=2",))
    process = bed.start("quant=dynamic", "dataset.num_prompts=1", "logger=wandb", "logger.mode=offline")
    output = process.communicate(timeout=550)[0]
    assert process.returncode == 0, output
    ours = r"(calibrat|sampl|scor)ing|(calibrate|quantize|sample|evaluate|trainer|Processor): |W&B: |metrics\.lpips|\|"
    lines = [line for line in re.split(r"[\r\n]+", output) if line.strip()]
    assert [line for line in lines[:-1] if not re.match(ours, line)] == []
    assert Path(lines[-1]).parent == testbed.runs
    assert "0 quantized layers" not in output


def test_a_gpu_that_is_not_used_is_told_once(finished, monkeypatch, caplog):
    """In words of this program's; Lightning's are silenced."""
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    with caplog.at_level(logging.INFO):
        finished.run("quant=tsq_tsw")
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["trainer: this machine has a GPU that is not used; trainer=gpu uses it"]
    assert {record.name.partition(".")[0] for record in caplog.records} == {"vdq"}


def test_says_that_it_is_done(scored, caplog):
    with caplog.at_level(logging.INFO, logger="vdq"):
        scored.run("quant=tsq_tsw")
    assert "done on" in caplog.text and "force=true" in caplog.text
