"""Several processes and other devices make the same videos, statistics and scores as one."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from pytest import approx
from safetensors.torch import load_file

PROMPTS = 3  # odd, so that two processes have different amounts of work
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "per_video.csv")


@pytest.mark.slow
def test_two_processes_equal_one(testbed, tmp_path, assert_same_latents):
    # One prompt a batch, so that both do the very same sums.
    settings = (*testbed.settings[1:], f"dataset.num_prompts={PROMPTS}", "batch_size=1")
    two, one = replace(testbed, settings=settings), replace(testbed, settings=settings, runs=tmp_path / "one")
    process = two.start("quant=tsq_tsw", *DDP)
    output = process.communicate(timeout=1200)[0]
    assert process.returncode == 0, output
    one.run("quant=tsq_tsw")

    for expected in (*one.runs.glob("fp16_*"), *one.runs.glob("tsq_tsw_w8a8_*")):
        folder = two.runs / expected.name
        assert_same_latents(folder, expected)
        assert table(folder)["index"].tolist() == list(range(PROMPTS))
        pd.testing.assert_frame_equal(table(folder), table(expected), atol=1e-4)
        scores = [json.loads((path / "metrics.json").read_text()) for path in (folder, expected)]
        assert scores[0]["values"] == approx(scores[1]["values"], abs=1e-4)
        assert scores[0]["num_videos"] == PROMPTS
        ran = [json.loads((path / "sampling.json").read_text()) for path in (folder, expected)]
        assert (ran[0]["devices"], ran[0]["videos"]) == (2, PROMPTS)
        assert ran[0]["quantized_calls"] == ran[1]["quantized_calls"]  # each prompt was sampled once
    a, b = (load_file(next((bed.runs / "cache").glob("stats_*.safetensors"))) for bed in (two, one))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-6, atol=0)


@pytest.mark.slow
def test_more_processes_than_prompts(testbed):
    """As at the end of an interrupted run."""
    bed = replace(testbed, settings=("sampler.steps=2", "logger=csv"))
    process = bed.start("quant=fp16", "stages=[sample,evaluate]", "dataset.num_prompts=1", *DDP)
    output = process.communicate(timeout=550)[0]
    assert process.returncode == 0, output
    assert len(list(testbed.runs.glob("fp16_*/samples/*.safetensors"))) == 1


@pytest.mark.parametrize("precision", [pytest.param("16-true", marks=pytest.mark.slow), "bf16-true"])
def test_half_precision_samples_but_methods_start_from_the_full_weights(testbed, finished, precision):
    """Statistics, parameters and signature are those of full precision where only the sampling is half."""
    bed = replace(testbed, settings=(*testbed.settings, f"trainer.precision={precision}"))
    folder = bed.run("quant=cw_tw")
    execution = json.loads((folder / "sampling.json").read_text())
    assert execution["dtype"] == {"16-true": "float16", "bf16-true": "bfloat16"}[precision]
    assert execution["quantized_calls"] == 72 * 2 + 6
    assert json.loads((folder / "result.json").read_text())["size_mb"] == approx(2.93, abs=0.05)
    latents = load_file(folder / "samples" / "0000.safetensors")["latents"]
    assert latents.dtype == torch.float32 and latents.isfinite().all()
    again = finished.run("quant=cw_tw")
    assert folder.name == again.name
    a, b = (load_file(path / "quant_state.safetensors") for path in (folder, again))
    for name in a:
        if "weight" in name:
            assert torch.equal(a[name], b[name])  # of the weights before they were rounded to half precision
    expected = load_file(again / "samples" / "0000.safetensors")["latents"]
    assert torch.linalg.vector_norm(latents - expected) < 0.2 * torch.linalg.vector_norm(expected)
