"""Exported transformers of diffusers compute what the integers of the reference compute."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="needs the packages of vdq[export]")

import onnx  # noqa: E402

from tests.export.pipelines import PROMPT, SAMPLER, STEPS, full_precision, model_of, quantized_run, sampled  # noqa: E402
from vdq.backends import ReferenceBackend  # noqa: E402
from vdq.diffusion.clock import StepClock  # noqa: E402
from vdq.diffusion.noise import PromptNoise  # noqa: E402
from vdq.errors import UserError  # noqa: E402
from vdq.export import artefact, onnx_qdq, onnx_runtime  # noqa: E402
from vdq.quant import apply  # noqa: E402

EXPORTS = [
    ("wan", "gather", ("quant=asq_tsw", "bits=w8a8")),
    ("ltx", "gather", ("quant=asq_tsw", "bits=w8a8")),
    ("cogvideox", "gather", ("quant=tsq_2tr", "bits=w4a6")),
    pytest.param("mochi", "gather", ("quant=asq_tsw", "bits=w8a8"), marks=pytest.mark.slow),
    pytest.param("wan2_2", "gather", ("quant=tsq_tsw", "bits=w6a8"), marks=pytest.mark.slow),
    pytest.param("wan", "constant", ("quant=tsq_2tr", "bits=w4a6"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of settings, each made once."""

    @cache
    def make(name: str, steps: str, settings: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp("onnx") / "onnx_qdq"
        artefact.write(onnx_qdq.OnnxQdqExporter(steps=steps), quantized_run(name, *settings), folder)
        return folder

    return make


@pytest.mark.parametrize(("name", "steps", "settings"), EXPORTS)
def test_onnx_runtime_samples_what_the_reference_samples(name, steps, settings, exported):
    """ONNX Runtime sums in another order; where that moves a code, the latents differ by a step of quantization, which
    is far less than what quantization does to them.
    """
    run = quantized_run(name, *settings)
    loaded = onnx_runtime.load(exported(name, steps, settings), model=model_of(name), threads=1)
    found = loaded.sample(model_of(name).encode([PROMPT]), PromptNoise(1, [0], None))
    clock = StepClock(STEPS)
    expected = sampled(name, apply(run.denoiser, run.state, clock, ReferenceBackend()), clock)
    assert (found - expected).norm() < 0.2 * (expected - full_precision(name)).norm()


@pytest.mark.slow
def test_each_expert_has_graphs_of_its_steps(exported):
    folder = exported("wan2_2", "gather", ("quant=tsq_tsw", "bits=w6a8"))
    graphs = json.loads((folder / "manifest.json").read_text())["contents"]["graphs"]
    windows = model_of("wan2_2").windows(SAMPLER)
    for name, steps in windows.items():
        assert [graphs[step].partition("/")[0] for step in steps] == [name] * len(steps)
    assert len(set(graphs)) == STEPS == len(list(folder.glob("*/*.onnx")))


def test_inputs_are_named_as_arguments(exported):
    """Those of a tuple one by one; the rotary embedding of CogVideoX is one."""
    folder = exported("cogvideox", "gather", ("quant=tsq_2tr", "bits=w4a6"))
    graph = onnx.load(next(folder.glob("*.onnx")), load_external_data=False).graph
    names = ["hidden_states", "encoder_hidden_states", "timestep", "image_rotary_emb_0", "image_rotary_emb_1"]
    assert [entry.name for entry in graph.input] == names
    card = (folder / "README.md").read_text()
    assert "| `image_rotary_emb_1` | float32 | [8, 16] |" in card and "return_dict=False" in card


def test_other_calls_are_refused(exported):
    net = onnx_runtime.load(
        exported("ltx", "gather", ("quant=asq_tsw", "bits=w8a8")), model=model_of("ltx"), threads=1
    ).denoiser
    manifest = json.loads((exported("ltx", "gather", ("quant=asq_tsw", "bits=w8a8")) / "manifest.json").read_text())
    call = {
        name: torch.zeros(shape, dtype=getattr(torch, dtype))
        for name, (dtype, shape) in manifest["contents"]["inputs"].items()
    }
    with pytest.raises(UserError, match="num_frames=3 must be "):
        net(**call, num_frames=3)
    with pytest.raises(UserError, match="must have those of the graph"):
        net(**call | {"timestep": torch.zeros(5)})


def test_families_that_nobody_has_compared_are_refused():
    with pytest.raises(UserError, match="^export=onnx_qdq knows STDiT, Wan, LTX-Video, CogVideoX, Mochi, not Latte$"):
        onnx_qdq.OnnxQdqExporter().check_model(model_of("latte"))
    onnx_qdq.OnnxQdqExporter().check_model(model_of("wan2_2"))
