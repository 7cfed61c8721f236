"""stages=[export] from the command's configuration, and the artefact in place of the run that made it."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from vdq.diffusion.noise import PromptNoise
from vdq.export import packed

EXPORT = ("stages=[export]", "export=packed")
TSQ_TSW = ("quant=tsq_tsw", "bits=w8a8")


def latents(folder: Path) -> torch.Tensor:
    return torch.stack([load_file(path)["latents"] for path in sorted((folder / "samples").glob("*.safetensors"))])


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The finished runs, of which tsq_tsw has an artefact."""
    bed = replace(finished, runs=tmp_path_factory.mktemp("exported") / "runs")
    shutil.copytree(finished.runs, bed.runs, ignore=shutil.ignore_patterns("videos_*"))
    bed.run(*TSQ_TSW, *EXPORT)
    return bed


@pytest.fixture(scope="module")
def folder(exported) -> Path:
    return next(exported.runs.glob("tsq_tsw_w8a8_*/export/packed"))


def test_artefact_samples_the_run_without_its_denoiser_and_its_runs(exported, folder, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(exported.weights, weights)
    (weights / "denoiser.safetensors").unlink()
    moved = shutil.copytree(folder, tmp_path / "moved")
    model = packed.load(moved)
    videos = model.video_model(weights=str(weights))
    prompts = exported.experiment(*TSQ_TSW).prompts.evaluation
    noise = PromptNoise(model.contents["seed"], range(len(prompts)), model.latent_shape)
    sampled = model.sample(videos.encode(prompts), noise)
    assert torch.equal(sampled, latents(folder.parents[1]))
    assert videos.decode(sampled).shape == (2, 16, 64, 64, 3)


def test_other_companions_are_refused(exported, folder, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(exported.weights, weights)
    (weights / "latents.json").write_text(json.dumps({"scaling_factor": 0.31}))
    with pytest.raises(ValueError, match="^model: scaling_factor 0.31 must be the artefact's, 0.3$"):
        packed.load(folder).video_model(weights=str(weights))


def test_run_of_an_artefact_is_a_run_of_its_own_with_the_same_videos(exported, folder, work):
    run = exported.run(f"artefact={folder}", *TSQ_TSW)
    assert work == ["sampling tsq_tsw", "scoring"]  # nothing is calibrated, and full precision is there
    assert run != folder.parents[1] and torch.equal(latents(run), latents(folder.parents[1]))
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (run, folder.parents[1]))
    assert ours["psnr"] == theirs["psnr"] and ours["size_mb"] == theirs["size_mb"]
    assert ours["changed"] == f"artefact={folder}" and theirs["changed"] == ""
    report, whole = (pd.read_csv(path / "report.csv").set_index("fqn") for path in (run, folder.parents[1]))
    unknown = ["weight_error", "act_range_spread"]  # weights and statistics are no part of an artefact
    assert report[unknown].isna().all(axis=None)
    assert whole.loc[whole["kind"] == "static", unknown].notna().all(axis=None)
    others = [*unknown, "reason", "stored"]  # what is stored is decided by the weight
    pd.testing.assert_frame_equal(report.drop(columns=others), whole.drop(columns=others))
    assert (report["reason"].isna() == whole["reason"].isna()).all()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("sampler=iddpm_20",), "sampler._target_=IDDPMSampler must be DDIMSampler, as artef"),
        (
            ("sampler.steps=4",),
            "artefact=.*: the parameters are for 2 steps, 999 ... 0, the sampler has 4 steps, 999 ... 0",
        ),
        (("sampler.guidance_scale=3",), "sampler.guidance_scale=3 must be 7.0, as artefact="),
        (("quant=asq",), "quant.name=asq must be tsq_tsw, as artefact="),
        (("bits=w4a8",), "quant.weight_bits=4 must be 8, as artefact="),
        (("model.name=other",), "model.name=other must be shapes, as artefact="),
    ],
)
def test_artefact_of_something_else_is_refused_before_any_model_is_built(overrides, sentence, exported, folder, work):
    with pytest.raises(ValueError, match=sentence):
        exported.run(f"artefact={folder}", *TSQ_TSW, *overrides)
    assert work == []


def test_export_is_done_once_and_again_with_force(exported, folder, caplog):
    before = (folder / "manifest.json").stat().st_ino
    with caplog.at_level(logging.INFO, logger="vdq"):
        exported.run(*TSQ_TSW, *EXPORT)
        assert f"export: found, {folder}" in caplog.text
        assert (folder / "manifest.json").stat().st_ino == before
        exported.run(*TSQ_TSW, *EXPORT, "force=true")
    assert "MB, full precision is 8.72 MB" in caplog.text
    assert (folder / "manifest.json").stat().st_ino != before
    assert len(latents(folder.parents[1])) == 2  # force=true repeats the export and nothing else


def test_another_or_a_damaged_artefact_is_not_overwritten(exported, folder, tmp_path):
    path = tmp_path / "packed"
    shutil.copytree(folder, path)
    with pytest.raises(ValueError, match=r"packed is of another run, tsq_tsw_.*; force=true replaces an artefact"):
        exported.run("quant=asq", "bits=w4a8", *EXPORT, f"export.path={path}")
    (path / "README.md").unlink()
    with pytest.raises(ValueError, match=r"README.md is missing; .*force=true replaces an artefact"):
        exported.run(*TSQ_TSW, *EXPORT, f"export.path={path}")
    exported.run("quant=asq", "bits=w4a8", *EXPORT, f"export.path={path}", "force=true")
    assert packed.load(path).contents["config"]["quant"]["name"] == "asq"


def test_what_cannot_be_exported_is_refused_before_any_model_is_built(testbed):
    with pytest.raises(ValueError, match="^export=packed stores integer weights, quant=fp16 has none"):
        testbed.run("quant=fp16", *EXPORT, "model.weights=nowhere")
    with pytest.raises(
        ValueError, match="^export=null must say what 'stages=\\[export\\]' shall write; allowed: .*packed"
    ):
        testbed.run("stages=[export]", "model.weights=nowhere")


def test_one_command_from_prompts_to_artefact(testbed):
    """A method without statistics, 4-bit weights, integer backend."""
    folder = testbed.run("quant=dynamic", "bits=w4a8", "backend=int8_cpu", "stages=[sample,export]", "export=packed")
    model = packed.load(folder / "export" / "packed")
    prompts = testbed.experiment().prompts.evaluation
    sampled = model.sample(model.video_model().encode(prompts), PromptNoise(42, [0, 1], model.latent_shape))
    assert torch.equal(sampled, latents(folder))
    assert "dynamic: 8 bits" in (folder / "export" / "packed" / "README.md").read_text()
