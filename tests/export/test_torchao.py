"""What plain diffusers loads, in a process without this program, computes what the run does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("torchao", reason="needs the packages of vdq[torchao]")

from tests import tiny_pipelines
from tests.export.pipelines import (
    STEPS,
    aligned,
    documented,
    full_precision,
    latents_of,
    model_of,
    plain_call,
    psnr,
    quantized_run,
)
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.export import artefact
from vdq.export.torchao import TorchaoExporter, quantized
from vdq.export.transformers import own_layers, transformers
from vdq.methods import DynamicMethod, FullPrecisionMethod, StaticMethod, StaticPlusMethod

SETTINGS = ("quant=asq", "quant.symmetric_weights=true", "bits=w8a8")
WITHOUT_VDQ = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vdq":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from tests.tiny_pipelines import CALLS, build

pipeline = build("wan")
pipeline.transformer = WanTransformer3DModel.from_pretrained(
    sys.argv[1], subfolder="transformer", torch_dtype=torch.float32
)
for parameter in pipeline.transformer.parameters():  # so that sums are rounded alike, see tests.export.pipelines
    if type(parameter.data) is torch.Tensor:
        parameter.data = parameter.data.clone()
settings = {"num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "latent", "prompt": ["a red dog"]}
generators = [torch.Generator().manual_seed(1)]
save_file({"latents": pipeline(generator=generators, **settings, **CALLS["wan"]).frames}, sys.argv[2])
"""


def own_tensors(name: str, run, **noise) -> torch.Tensor:
    """What this process samples with the tensors of the run, which were never written."""
    pipeline = run.model.pipeline()
    for part, net in transformers(run.model, run.denoiser).items():
        setattr(pipeline, part, quantized(net, own_layers(run.model, part, run.state.layers)))
    return plain_call(pipeline, name, **noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("torchao") / "torchao"
    artefact.write(TorchaoExporter(), quantized_run("wan", *SETTINGS), path)
    return path


def test_a_process_without_this_program_samples_the_same_bits(folder, tmp_path):
    command = [sys.executable, "-c", WITHOUT_VDQ, folder, tmp_path / "found.safetensors"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "found.safetensors")["latents"]
    assert torch.equal(found, own_tensors("wan", quantized_run("wan", *SETTINGS), seed=1))


OTHERS = sorted(tiny_pipelines.FAMILIES.keys() - {"wan", "wan2_2", "ltx"})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("wan", SETTINGS),
        ("wan2_2", SETTINGS),
        ("ltx", ("quant=cw_tw", "quant.symmetric_acts=true", *SETTINGS[1:])),
        *(pytest.param(name, SETTINGS, marks=pytest.mark.slow) for name in OTHERS),
    ],
)
def test_it_is_close_to_the_simulation(name, settings):
    """Codes are equal but for those at the border between two: far closer than what quantization does."""
    run = quantized_run(name, *settings)
    simulated = latents_of(name, run)
    assert psnr(own_tensors(name, run), simulated) > psnr(simulated, full_precision(name)) + 20


def test_the_card_says_what_was_measured(folder):
    contents = json.loads((folder / "manifest.json").read_text())["contents"]
    card = (folder / "README.md").read_text()
    assert contents["torchao_psnr"] > contents["simulated_psnr"] + 20 > 40
    for key in ("torchao_psnr", "simulated_psnr"):
        assert f"{contents[key]:.1f} dB at least" in card
    assert "ranges were calibrated for 4 steps" in card and 'subfolder="transformer"' in card


def test_nothing_tells_of_the_machine(folder):
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["_name_or_path"] == "" and config["quantization_config"]["quant_method"] == "torchao"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (FullPrecisionMethod(), "writes quantized layers, quant=fp16 has none"),
        (DynamicMethod(), "cannot hold the part per_token of this method; it holds affine, smoothing, static,"),
        (StaticPlusMethod(), "cannot hold the part correction of this method"),
        (StaticMethod(), "quant.symmetric_weights=false must be true"),
        (
            StaticMethod(symmetric_weights=True, num_time_ranges=2),
            "the method has 1 set.s. of weights and 2 range.s. of",
        ),
        (StaticMethod(symmetric_weights=True, num_time_ranges="per_step", alpha=0.5), "the method has 4 set.s. of w"),
        (StaticMethod(symmetric_weights=True, weight_bits=4), "bits.weight=4 must be 8, a code is stored in a byte"),
        (StaticMethod(symmetric_weights=True, act_bits=6), "bits.act=6 must be 8"),
    ],
)
def test_methods_that_do_not_fit_are_refused_before_calibration(method, message):
    with pytest.raises(UserError, match=f"^export=torchao:? {message}"):
        TorchaoExporter().check(method, Sampler(steps=STEPS), None)


def test_methods_of_one_range_are_taken():
    for options in ({}, {"alpha": 0.5}, {"symmetric_acts": True}):
        TorchaoExporter().check(StaticMethod(symmetric_weights=True, **options), Sampler(steps=STEPS), None)


def test_networks_of_this_program_are_refused(make_run):
    with pytest.raises(UserError, match="the model's transformer is STDiT of this program"):
        TorchaoExporter().check_model(make_run("quant=asq").model)
    TorchaoExporter().check_model(model_of("wan2_2"))


def test_the_documented_code_loads_it(folder):
    pipeline = documented("torchao", folder, "wan")
    aligned(pipeline.transformer)
    found = plain_call(pipeline, "wan")
    assert torch.equal(found, own_tensors("wan", quantized_run("wan", *SETTINGS)))
