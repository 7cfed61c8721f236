"""A plain pipeline that loads the folder after `import vdq.diffusers` computes what the run does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file

import vdq.diffusers  # noqa: F401  (teaches diffusers to read what is written)
from tests import tiny_pipelines
from tests.export.pipelines import (
    SAMPLER,
    documented,
    full_precision,
    latents_of,
    model_of,
    pipeline_folder,
    plain_call,
    quantized_run,
)
from vdq.errors import UserError
from vdq.export import artefact
from vdq.export.diffusers import DiffusersExporter
from vdq.export.transformers import transformers
from vdq.methods import FullPrecisionMethod, StaticMethod
from vdq.methods.dvd_quant.method import DVDQuantMethod
from vdq.quant import set_bytes

RUNS = {
    "wan": ("quant=tsq_tsw", "quant.per_branch=true", "bits=w8a8", "bits.weight=12"),
    "wan2_2": ("quant=tsq_2tr", "bits=w6a6", "quant.keep_steps=[0,-1]"),
    "ltx": ("quant=qvd", "bits=w4a8", "quant.temporal_bits=null"),
}
PLAIN = """
import sys
import torch
import vdq.diffusers
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from tests.export.pipelines import plain_call

found = {}
for name in sys.argv[2:]:
    pipeline = DiffusionPipeline.from_pretrained(f"{sys.argv[1]}/{name}")
    for again in ("", "again"):
        found[name + again] = plain_call(pipeline, name).contiguous()
save_file(found, f"{sys.argv[1]}/found.safetensors")
"""


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> Path:
    """Folders of pipelines, in which the exported transformers are in place of their own."""
    folder = tmp_path_factory.mktemp("diffusers")
    for name, settings in RUNS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(set_bytes, "SMALL", 0)  # as layers of real models are not
            artefact.write(DiffusersExporter(), quantized_run(name, *settings), folder / f"{name}_export")
        shutil.copytree(pipeline_folder(name), folder / name)
        for denoiser in model_of(name).denoisers:
            shutil.rmtree(folder / name / denoiser)
            shutil.copytree(folder / f"{name}_export" / denoiser, folder / name / denoiser)
    return folder


def test_plain_pipelines_sample_the_same_bits(pipelines):
    command = [sys.executable, "-c", PLAIN, str(pipelines), *RUNS]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "not used when initializing" not in done.stderr and "newly initialized" not in done.stderr
    found = load_file(pipelines / "found.safetensors")
    for name, settings in RUNS.items():
        expected = latents_of(name, quantized_run(name, *settings))
        assert torch.equal(found[name], expected) and torch.equal(found[f"{name}again"], expected)
        assert not torch.equal(expected, full_precision(name))


def test_what_is_less_is_stored_and_what_kept_steps_need(pipelines):
    """Four sets of 12 bits would be larger than the fp32 weight that they follow from, one of 4 bits is smaller; kept
    steps need the weight anyway, from which all sets follow.
    """
    stored = {
        "wan/transformer": ("blocks.0.attn1.to_q", {"weight"}),
        "ltx/transformer": ("transformer_blocks.0.attn1.to_q", {"stored_codes.codes"}),
        "wan2_2/transformer": ("blocks.0.attn1.to_q", {"weight"}),
    }
    for folder, (fqn, kinds) in stored.items():
        with safe_open(pipelines / folder / "diffusion_pytorch_model.safetensors", "pt") as file:
            names = set(file.keys())
        assert {kind for kind in ("weight", "stored_codes.codes") if f"{fqn}.{kind}" in names} == kinds


def test_classes_and_automatic_classes_load_it(pipelines):
    for loader in (WanTransformer3DModel, AutoModel):
        net = loader.from_pretrained(str(pipelines / "wan"), subfolder="transformer")
        assert type(net) is WanTransformer3DModel and net.is_quantized and net.quantization_method == "vdq"
        with pytest.raises(ValueError, match="not serializable"):
            net.save_pretrained(pipelines / "again")


def test_a_foreign_schedule_is_refused_and_named(pipelines):
    pipeline = DiffusionPipeline.from_pretrained(pipelines / "wan")
    message = r"^a schedule with timesteps 999, \d+ is not the one that this WanTransformer3DModel was quantized for, "
    with pytest.raises(UserError, match=f"{message}4 steps, 999 ... 500$"):
        plain_call(pipeline, "wan", steps=7)
    assert plain_call(pipeline, "wan").isfinite().all()


def test_half_precision_keeps_scales_in_full(pipelines):
    half = WanTransformer3DModel.from_pretrained(pipelines / "wan", subfolder="transformer", torch_dtype=torch.bfloat16)
    full = WanTransformer3DModel.from_pretrained(pipelines / "wan", subfolder="transformer")
    for name in ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2"):
        one, other = half.get_submodule(name), full.get_submodule(name)
        assert one.bias.dtype == torch.bfloat16 and torch.equal(one.act.divisor, other.act.divisor)
        x = torch.randn(1, 8, one.in_features)
        assert one(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(one(x.bfloat16()).float(), other(x), rtol=0.1, atol=0.1)


def test_nothing_tells_of_the_machine(pipelines):
    config = json.loads((pipelines / "wan" / "transformer" / "config.json").read_text())
    assert config["_name_or_path"] == "" and config["quantization_config"]["quant_method"] == "vdq"
    assert config["quantization_config"]["timesteps"] == model_of("wan").timesteps(SAMPLER).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": 9}, "layout=9 of this quantized transformer must be 1"),
        ({"backend": {"_target_": "os.system"}}, "backend._target_=os.system must be a Backend of the package vdq"),
    ],
)
def test_what_was_changed_is_refused(change, message, pipelines, tmp_path):
    shutil.copytree(pipelines / "wan" / "transformer", tmp_path / "transformer")
    path = tmp_path / "transformer" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        WanTransformer3DModel.from_pretrained(tmp_path / "transformer")


def test_the_card_names_the_schedule(pipelines):
    card = (pipelines / "wan2_2_export" / "README.md").read_text()
    assert "schedule must be 2 steps, 999 ... 900." in card and "schedule must be 2 steps, 750 ... 500." in card
    assert "| kept steps | 0, 3 of 0..3 in full precision |" in card
    assert "| schedule | 4 steps, 999 ... 500 |" in card and "import vdq.diffusers" in card


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (FullPrecisionMethod(), "writes quantized layers, quant=fp16 has none"),
        (DVDQuantMethod(act_bits=4, high_bits=6), "cannot hold the part bit_switch of this method"),
    ],
)
def test_methods_that_do_not_fit_are_refused_before_calibration(method, message):
    with pytest.raises(UserError, match=f"^export=diffusers {message}"):
        DiffusersExporter().check(method, SAMPLER, None)
    DiffusersExporter().check(StaticMethod(num_time_ranges="per_step"), SAMPLER, None)


def test_the_documented_code_loads_it(pipelines):
    pipeline = documented("diffusers", pipelines / "wan_export", "wan")
    assert torch.equal(plain_call(pipeline, "wan"), latents_of("wan", quantized_run("wan", *RUNS["wan"])))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(tiny_pipelines.FAMILIES))
def test_every_family_is_handed_over(name, tmp_path):
    run = quantized_run(name, "quant=tsq_tsw", "bits=w8a8")
    artefact.write(DiffusersExporter(), run, tmp_path / "diffusers")
    pipeline = run.model.pipeline()
    for part, net in transformers(run.model, run.denoiser).items():
        setattr(pipeline, part, type(net).from_pretrained(tmp_path / "diffusers", subfolder=part))
    assert torch.equal(plain_call(pipeline, name), latents_of(name, run))
