"""A pipeline's folder becomes the folders that other libraries load, by the command line's own way."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests import tiny_pipelines
from vdq.commands.run import run
from vdq.errors import UserError
from vdq.export.sample import main

CONF = Path(__file__).parents[2] / "conf"
SYMMETRIC = ("quant=asq", "quant.symmetric_weights=true", "quant.symmetric_acts=true", "bits=w8a8")
EXPORTS = {"torchao": SYMMETRIC, "diffusers": ("quant=tsq_tsw", "bits=w6a8"), "modelopt": SYMMETRIC}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Runs the stages with a tiny Wan; returns the run's folder."""
    folder = tmp_path_factory.mktemp("handover")
    (folder / "prompts.txt").write_text("a red dog\n")
    call = ",".join(f"{name}:{value}" for name, value in tiny_pipelines.CALLS["wan"].items())
    own = ["model=diffusers", f"model.pretrained={tiny_pipelines.save('wan', folder / 'wan')}", "model.dtype=fp32"]
    own += [f"model.call={{{call}}}", "sampler.steps=2", "logger=csv", "metrics=fidelity"]
    own += [f"dataset.{name}={folder / 'prompts.txt'}" for name in ("prompts", "calibration_prompts")]
    own += [f"paths.{name}={folder / name}" for name in ("runs", "results")]

    def make(*overrides: str) -> Path:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return folder / "runs" / run(compose("config", overrides=[*own, *overrides]))

    return make


@pytest.mark.parametrize("export", EXPORTS)
def test_every_export_is_written(export, program):
    if export == "torchao":
        pytest.importorskip("torchao", reason="needs the packages of vdq[torchao]")
    folder = program(*EXPORTS[export], f"export={export}", "stages=[export]") / "export" / export
    names = {"config.json", "diffusion_pytorch_model.safetensors"}
    assert names <= {path.name for path in (folder / "transformer").iterdir()}
    assert "## What was lost" in (folder / "README.md").read_text()


@pytest.mark.parametrize("export", ["diffusers", "modelopt"])
def test_the_testbeds_network_is_refused_before_calibration(export, testbed):
    with pytest.raises(UserError, match=f"^export={export} writes transformers that plain diffusers loads"):
        testbed.run(*SYMMETRIC, f"export={export}", "stages=[export]")
    assert not list(testbed.runs.glob("cache/stats_*"))


@pytest.mark.slow
def test_graphs_make_a_video(program, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the packages of vdq[export]")
    folder = program("quant=asq", "bits=w8a8", "export=onnx_qdq", "stages=[export]") / "export" / "onnx_qdq"
    video = main([str(folder), "--prompt=a cat", f"--out={tmp_path / 'video.gif'}", f"--cache={tmp_path / 'cache'}"])
    assert video.stat().st_size > 0
