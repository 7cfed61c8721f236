"""The folder has the names that loaders read, and what they compute with them is what the run computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.export.pipelines import STEPS, model_of, quantized_run
from vdq.backends import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.export import artefact
from vdq.export.modelopt import ModelOptExporter
from vdq.methods import FullPrecisionMethod, StaticMethod
from vdq.quant import apply

SYMMETRIC = ("quant.symmetric_weights=true", "quant.symmetric_acts=true", "bits=w8a8")
METHODS = ("cw_tw", "asq")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("modelopt")
    for quant in METHODS:
        artefact.write(ModelOptExporter(), quantized_run("wan2_2", f"quant={quant}", *SYMMETRIC), folder / quant)
    return {quant: folder / quant for quant in METHODS}


@pytest.mark.parametrize("quant", METHODS)
def test_the_tensors_compute_what_the_run_computes(quant, folders):
    """By numpy, as ModelOpt's scales are defined: x' = x pre_quant_scale, codes by input_scale, product in integers."""
    run = quantized_run("wan2_2", f"quant={quant}", *SYMMETRIC)
    quantized = apply(run.denoiser, run.state, StepClock(STEPS), FakeQuantBackend())
    generator = torch.Generator().manual_seed(0)
    for name in run.model.denoisers:
        tensors = load_file(folders[quant] / name / "diffusion_pytorch_model.safetensors")
        for fqn in ("blocks.0.attn1.to_q", "blocks.1.attn2.to_k", "blocks.1.ffn.net.2"):
            layer = quantized[name].get_submodule(fqn)
            x = torch.randn(1, 5, layer.in_features, generator=generator)
            weight, out = tensors[f"{fqn}.weight"], layer.out_features
            assert weight.dtype == np.int8 and weight.shape == (out, layer.in_features)
            assert tensors[f"{fqn}.weight_scale"].shape == (out,) and tensors[f"{fqn}.input_scale"].shape == ()
            scaled = x.numpy() * tensors.get(f"{fqn}.pre_quant_scale", np.float32(1))
            codes = np.clip(np.rint(scaled / tensors[f"{fqn}.input_scale"]), -128, 127).astype(np.int64)
            product = (codes @ weight.T.astype(np.int64)) * tensors[f"{fqn}.input_scale"]
            expected = product * tensors[f"{fqn}.weight_scale"] + tensors[f"{fqn}.bias"]
            np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_smoothing_is_there_where_the_method_has_it(folders):
    for quant, there in (("cw_tw", False), ("asq", True)):
        names = load_file(folders[quant] / "transformer" / "diffusion_pytorch_model.safetensors")
        assert any(name.endswith(".pre_quant_scale") for name in names) == there
        card = (folders[quant] / "README.md").read_text()
        assert ("pre_quant_scale" in card) == there
        assert "**No server has run this folder.**" in card and "`transformer` and `transformer_2`" in card


def test_the_configuration_is_modelopts(folders):
    config = json.loads((folders["asq"] / "transformer" / "config.json").read_text())["quantization_config"]
    other = json.loads((folders["asq"] / "transformer" / "hf_quant_config.json").read_text())
    assert config["quant_method"] == "modelopt" and config["quant_algo"] == "W8A8_SQ_PER_CHANNEL"
    form = {"dynamic": False, "num_bits": 8, "type": "int"}
    group = {"input_activations": form, "weights": form | {"strategy": "channel"}, "targets": ["Linear"]}
    assert config["config_groups"] == {"group_0": group}
    assert other["quantization"]["quant_algo"] == config["quant_algo"]
    assert other["quantization"]["exclude_modules"] == config["ignore"]
    assert "proj_out" in config["ignore"] and not [name for name in config["ignore"] if name.startswith("blocks.")]


def test_kept_steps_are_the_policy_that_servers_parse(tmp_path):
    """The fields are those that SGLang's parser asks for; it refuses others."""
    run = quantized_run("wan", "quant=cw_tw", *SYMMETRIC, "quant.keep_steps=[0,1,-1]")
    artefact.write(ModelOptExporter(), run, tmp_path / "modelopt")
    config = json.loads((tmp_path / "modelopt" / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["runtime"]["diffusion_step_policy"] == {
        "schema_version": 1,
        "type": "first_last_n",
        "index_space": "denoising_loop_iteration",
        "scope": ["transformer"],
        "default_mode": "native",
        "first_steps": {"count": 2, "mode": "a16"},
        "last_steps": {"count": 1, "mode": "a16"},
        "overlap": "a16",
        "reasoner": "native",
    }
    assert "where the run had the weights as they were" in (tmp_path / "modelopt" / "README.md").read_text()


def test_steps_in_between_are_no_policy():
    ModelOptExporter().check_steps((0, 1, 3), 4)
    with pytest.raises(UserError, match=r"quant.keep_steps=\[0, 2\] must be the first and the last of 4 steps"):
        ModelOptExporter().check_steps((0, 2), 4)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (FullPrecisionMethod(), "writes quantized layers, quant=fp16 has none"),
        (StaticMethod(symmetric_weights=True), "quant.symmetric_acts=false must be true, there is no place for zero"),
        (StaticMethod(symmetric_acts=True), "quant.symmetric_weights=false must be true"),
    ],
)
def test_methods_that_do_not_fit_are_refused_before_calibration(method, message):
    with pytest.raises(UserError, match=f"^export=modelopt:? {message}"):
        ModelOptExporter().check(method, Sampler(steps=STEPS), None)


def test_networks_of_this_program_are_refused(make_run):
    with pytest.raises(UserError, match="the model's transformer is STDiT of this program"):
        ModelOptExporter().check_model(make_run("quant=asq").model)
    ModelOptExporter().check_model(model_of("wan2_2"))
