"""The exported denoiser is the quantized one, in integers and without a range that is measured at run time."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("onnx", reason="needs the packages of vdq[export]")
pytest.importorskip("onnxruntime", reason="needs the packages of vdq[export]")
pytest.importorskip("onnxscript", reason="needs the packages of vdq[export]")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402

from vdq import installation  # noqa: E402
from vdq.backends import FakeQuantBackend  # noqa: E402
from vdq.benchmark.peers.onnx_qdq import openvino_weight_bits  # noqa: E402
from vdq.diffusion.clock import StepClock  # noqa: E402
from vdq.diffusion.noise import PromptNoise  # noqa: E402
from vdq.diffusion.samplers import DDIMSampler, IDDPMSampler  # noqa: E402
from vdq.export import artefact, onnx_graph, onnx_qdq, onnx_runtime  # noqa: E402
from vdq.export.onnx_linear import OnnxBackend  # noqa: E402
from vdq.export.onnx_session import PRECISE  # noqa: E402
from vdq.export.sample import main  # noqa: E402
from vdq.methods import DynamicMethod, FullPrecisionMethod, StaticMethod, StaticPlusMethod  # noqa: E402
from vdq.quant import apply, projections  # noqa: E402

STATIC = ["cw_tw", "tsw", "asq", "asq_tsw", "tsq_2tr", "tsq_4tr", "tsq_10tr", "tsq_tsw"]
FAST = {
    ("cw_tw", "w8a8", "gather"),
    ("asq_tsw", "w8a8", "gather"),
    ("asq_tsw", "w8a8", "constant"),
    ("tsq_2tr", "w4a6", "gather"),
    ("tsq_2tr", "w4a6", "constant"),
}
EXPORTS = [
    pytest.param(*settings, marks=[] if settings in FAST else pytest.mark.slow, id="-".join(settings))
    for settings in product(STATIC, ("w8a8", "w4a6"), ("gather", "constant"))
]
RANGE_OPERATORS = {"ReduceMin", "ReduceMax", "DynamicQuantizeLinear", "TopK"}
PRODUCTS = ("FullyConnected", "MatMul")  # OpenVINO's names


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """The traced graph is the same for every method, and tracing is what takes long."""
    with pytest.MonkeyPatch.context() as patch:
        original, kept = onnx_graph.traced, []
        patch.setattr(onnx_graph, "traced", lambda net: kept[0] if kept else kept.append(original(net)) or kept[0])
        yield


@pytest.fixture(scope="module")
def exported(make_run, tmp_path_factory):
    """(run, folder) of settings, each made once."""

    @cache
    def make(steps: str, *overrides: str, weight_type: str | None = None):
        run, folder = make_run(*overrides), tmp_path_factory.mktemp("onnx") / "onnx_qdq"
        artefact.write(onnx_qdq.OnnxQdqExporter(steps=steps, weight_type=weight_type), run, folder)
        return run, folder

    return make


def files(folder: Path) -> list[str]:
    return json.loads((folder / "manifest.json").read_text())["contents"]["graphs"]


def graphs(folder: Path) -> list[onnx.GraphProto]:
    return [onnx.load(folder / name).graph for name in dict.fromkeys(files(folder))]


def trajectory(denoiser, run, clock) -> list[Tensor]:
    """Latents after every step, of two prompts."""
    kept = []
    noise = PromptNoise(42, [0, 1], run.model.latent_shape)
    run.model.sample(
        denoiser, run.model.encode(["a", "b"]), noise, clock, run.sampler, lambda _, x: kept.append(x.clone())
    )
    return kept


@pytest.mark.parametrize(("quant", "bits", "steps"), EXPORTS)
def test_samples_what_the_backend_samples(quant, bits, steps, exported):
    check_samples(*exported(steps, f"quant={quant}", f"bits={bits}"))


def test_samples_the_same_with_signed_weights(exported):
    check_samples(*exported("gather", "quant=asq_tsw", "bits=w8a8", weight_type="int8"))


def check_samples(run, folder: Path) -> None:
    """Step by step. ONNX Runtime sums in another order; where that moves a code, the latents differ by a step of
    quantization, which is far less than what quantization does to them.
    """
    model, clock = onnx_runtime.load(folder, threads=1), StepClock(run.state.num_steps)
    found = trajectory(model.denoiser, run, model.clock)
    expected = trajectory(apply(run.denoiser, run.state, clock, run.backend), run, clock)
    exact = trajectory(run.denoiser, run, clock)
    for ours, theirs, full in zip(found, expected, exact, strict=True):
        assert (ours - theirs).norm() < 0.1 * (theirs - full).norm()
    assert (found[0] - expected[0]).abs().max() < 1e-2


@pytest.mark.parametrize("steps", ["gather", "constant"])
def test_shifts_corrections_bits_of_steps_and_codes(steps, make_run, extended_state, tmp_path):
    run = make_run("quant=asq_tsw", "bits=w8a8")
    plain = trajectory(apply(run.denoiser, run.state, clock := StepClock(4), run.backend), run, clock)
    run = replace(run, state=extended_state(run.denoiser, run.state, "shift correction bits codes"))
    artefact.write(onnx_qdq.OnnxQdqExporter(steps=steps), run, tmp_path / "onnx_qdq")
    model = onnx_runtime.load(tmp_path / "onnx_qdq", threads=1)
    found = trajectory(model.denoiser, run, model.clock)
    expected = trajectory(apply(run.denoiser, run.state, clock := StepClock(4), run.backend), run, clock)
    for ours, theirs, other in zip(found, expected, plain, strict=True):
        assert (ours - theirs).norm() < 0.1 * (theirs - other).norm()


@pytest.mark.parametrize("mask", [[1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 1], [1] * 6])
def test_padding_is_masked_as_it_is_cut(mask, exported):
    """The graph keeps padded tokens, the network cuts them out."""
    run, folder = exported("gather", "quant=cw_tw", "bits=w8a8")
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator) for shape in ((2, *run.model.latent_shape), (2, 1, 6, 8)))
    inputs = x, torch.tensor([500, 500]), y, torch.tensor([mask])
    expected = apply(run.denoiser, run.state, StepClock(4), run.backend)(*inputs)
    torch.testing.assert_close(onnx_runtime.load(folder).denoiser(*inputs), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("quant", "bits", "steps"), EXPORTS)
def test_every_range_is_a_constant_of_the_step(quant, bits, steps, exported):
    """Scales, zero points, smoothing factors and bounds come from stored tensors by the step's number alone. The means
    of layer norms and the maxima of softmaxes feed none of them.
    """
    _, folder = exported(steps, f"quant={quant}", f"bits={bits}")
    for graph in graphs(folder):
        maker = {name: node for node in graph.node for name in node.output}
        fixed = {tensor.name for tensor in graph.initializer}
        assert not RANGE_OPERATORS & {node.op_type for node in graph.node}
        parameters = [name for node in graph.node for name in quantizer_parameters(node)]
        assert len([node for node in graph.node if node.op_type == "QuantizeLinear"]) == 13
        for name in parameters:
            node = maker.get(name)
            gathered = node is not None and node.op_type == "Gather" and node.input[1] == "step"
            assert name in fixed or (gathered and node.input[0] in fixed and steps == "gather"), name


def quantizer_parameters(node: onnx.NodeProto) -> list[str]:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Clip"):
        return list(node.input[1:])
    return [node.input[1]] if node.op_type == "Div" and node.output[0].endswith(".smoothed") else []


@pytest.mark.parametrize(
    ("quant", "gather", "constant"),
    [("cw_tw", 1, 1), ("tsw", 1, 4), ("asq", 1, 1), ("asq_tsw", 1, 4), ("tsq_2tr", 2, 2), ("tsq_tsw", 4, 4)],
)
def test_steps_of_a_graph(quant, gather, constant, make_run):
    """Those of one weight set, and of one set of activation qparams where these are constants."""
    run = make_run(f"quant={quant}")
    layers = onnx_graph.layer_specs(apply(run.denoiser, run.state, StepClock(4), OnnxBackend())).values()
    for count, is_constant in ((gather, False), (constant, True)):
        groups = onnx_graph.step_groups(layers, constant=is_constant)
        assert len(groups) == count and sorted(sum(groups, [])) == [0, 1, 2, 3]


@pytest.mark.parametrize(("quant", "steps"), [("asq_tsw", "gather"), ("asq_tsw", "constant"), ("cw_tw", "gather")])
def test_the_step_is_an_input_where_something_is_gathered(quant, steps, exported):
    _, folder = exported(steps, f"quant={quant}", "bits=w8a8")
    inputs = [[entry.name for entry in graph.input] for graph in graphs(folder)]
    step = ["step"] if (quant, steps) == ("asq_tsw", "gather") else []
    assert inputs == [["x", "timestep", "y", "mask", *step]] * (4 if steps == "constant" else 1)


def test_graphs_share_the_tensors(exported):
    """Every tensor of the data file is there once."""
    _, folder = exported("constant", "quant=asq_tsw", "bits=w8a8")
    places = set()
    for name in set(files(folder)):
        for tensor in onnx.load(folder / name, load_external_data=False).graph.initializer:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            places |= {(tensor.name, facts["offset"], int(facts["length"]))} if facts else set()
    assert len(places) == len({name for name, *_ in places}) == len({offset for _, offset, _ in places})
    assert {f"{fqn}.weight_codes" for fqn in ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2")} <= {name for name, *_ in places}


def test_four_bits_are_stored_in_half_a_byte(exported):
    run, folder = exported("constant", "quant=tsq_2tr", "bits=w4a6")
    codes = [t for t in graphs(folder)[0].initializer if t.name.endswith(("weight_nibbles", "weight_codes"))]
    assert {tensor.data_type for tensor in codes} == {onnx.TensorProto.UINT4}
    weights = [p.weight.numel() for p in projections(run.denoiser) if p.fqn in run.state.layers]
    assert sum(len(tensor.raw_data) for tensor in codes) * 2 == sum(weights)


def test_nothing_tells_of_the_machine(exported):
    _, folder = exported("gather", "quant=asq_tsw", "bits=w8a8")
    for name in ("denoiser.onnx", "manifest.json", "README.md"):
        assert str(Path(torch.__file__).parent).encode() not in (folder / name).read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in (folder / name).read_bytes()


# Sessions of others ---------------------------------------------------------------------------------------------------


def inputs_of(run) -> dict[str, np.ndarray]:
    """Latents, captions and a mask with gaps, at the first step."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator) for shape in ((2, *run.model.latent_shape), (2, 1, 6, 8)))
    tensors = x, torch.tensor([500, 500]), y, torch.tensor([[1, 1, 0, 1, 0, 0]]), torch.tensor(0)
    return {name: value.numpy() for name, value in zip((*onnx_graph.INPUTS, "step"), tensors, strict=True)}


def expected_output(run) -> torch.Tensor:
    x, timestep, y, mask, _ = (torch.from_numpy(value) for value in inputs_of(run).values())
    return apply(run.denoiser, run.state, StepClock(run.state.num_steps), run.backend)(x, timestep, y, mask)


def onnxruntime_output(path: Path, run, entries: dict[str, str]) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}
    feed = {name: value for name, value in inputs_of(run).items() if name in taken}
    return torch.from_numpy(session.run(None, feed)[0])


@pytest.mark.parametrize(("weight_type", "bits"), [(None, ()), ("int8", ("bits.weight=7",)), ("int8", ("bits.act=7",))])
@pytest.mark.parametrize("steps", ["gather", "constant"])
def test_no_session_gets_a_safe_form_wrong(steps, weight_type, bits, exported):
    """One that sets nothing: 8-bit weights are unsigned, or codes have fewer bits."""
    weight_type = weight_type or "uint8"
    run, folder = exported(steps, "quant=asq_tsw", "bits=w8a8", *bits, weight_type=weight_type)
    found = onnxruntime_output(folder / files(folder)[0], run, {})
    torch.testing.assert_close(found, expected_output(run), rtol=1e-2, atol=1e-2)
    assert "There is nothing to set." in (folder / "README.md").read_text()


@pytest.mark.parametrize("steps", ["gather", "constant"])
def test_int8_is_exact_in_a_session_that_sets_what_the_card_says(steps, exported):
    run, folder = exported(steps, "quant=asq_tsw", "bits=w8a8", weight_type="int8")
    ((name, value),) = PRECISE.items()
    card = (folder / "README.md").read_text()
    assert f'options.add_session_config_entry("{name}", "{value}")' in card and '{"LP_TRANSFORMS_MODE": False}' in card
    found = onnxruntime_output(folder / files(folder)[0], run, PRECISE)
    torch.testing.assert_close(found, expected_output(run), rtol=1e-2, atol=1e-2)


def openvino_output(path: Path, run, **settings) -> tuple[torch.Tensor, int]:
    """And how many products are of integers."""
    core = pytest.importorskip("openvino", reason="needs the packages of vdq[export]").Core()
    if "INT8" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("OpenVINO computes no integers on this CPU")
    settings |= {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(path, "CPU", settings)
    info = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    products = [entry["primitiveType"].astype(str) for entry in info if entry["layerType"].astype(str) in PRODUCTS]
    output = compiled({name: value for name, value in inputs_of(run).items() if name != "step"})
    return torch.from_numpy(output[0]), len([kind for kind in products if kind.endswith("I8")])


@pytest.mark.parametrize(
    ("quant", "bits"),
    [("asq_tsw", ("w8a8",)), ("asq_tsw", ("w8a8", "bits.weight=7")), ("tsq_2tr", ("w4a6",))],
    ids=["w8a8", "w7a8", "w4a6"],
)
def test_openvino_computes_constant_graphs_in_integers(quant, bits, exported):
    """Which are exact but for 8 bits on a CPU where its sums saturate: there the card has a setting."""
    run, folder = exported("constant", f"quant={quant}", *(f"bits={bits[0]}", *bits[1:]))
    found, integer = openvino_output(folder / files(folder)[0], run)
    assert integer >= 13
    if bits == ("w8a8",) and openvino_weight_bits() < 8:
        found, integer = openvino_output(folder / files(folder)[0], run, LP_TRANSFORMS_MODE=False)
        assert integer == 0
    torch.testing.assert_close(found, expected_output(run), rtol=2e-2, atol=2e-2)


def test_openvino_computes_uint8_weights_in_floating_point(exported):
    run, folder = exported("constant", "quant=asq_tsw", "bits=w8a8", weight_type="uint8")
    found, integer = openvino_output(folder / files(folder)[0], run)
    torch.testing.assert_close(found, expected_output(run), rtol=2e-2, atol=2e-2)
    assert integer == 0


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (FullPrecisionMethod(), " exports quantized models, quant=fp16 quantizes nothing"),
        (DynamicMethod(), " cannot export DynamicMethod: its ranges are measured at run time"),
        (StaticPlusMethod(low_rank=0), " does not run the part rotation; it runs affine"),
        (StaticMethod(act_bits=16), ": bits.act=16 must be at most 8"),
        (StaticMethod(weight_bits=12), ": bits.weight=12 must be at most 8"),
    ],
)
def test_what_is_no_static_byte_is_refused(method, reason):
    with pytest.raises(ValueError, match=rf"^export=onnx_qdq{reason}"):
        onnx_qdq.OnnxQdqExporter().check(method, DDIMSampler(), FakeQuantBackend())


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"^export.steps=both must be one of gather, constant$"):
        onnx_qdq.OnnxQdqExporter(steps="both")
    with pytest.raises(ValueError, match=r"^export.weight_type=int4 must be uint8, int8 or null$"):
        onnx_qdq.OnnxQdqExporter(weight_type="int4")


@pytest.mark.parametrize("bits", ["w4a6", "w4a8"])
def test_a_type_that_would_change_nothing_is_refused(bits, make_run, tmp_path):
    run = make_run("quant=asq_tsw", f"bits={bits}")
    with pytest.raises(ValueError, match=r"^export.weight_type=uint8 does nothing: it is for 8-bit weights with 8-bit"):
        onnx_qdq.OnnxQdqExporter(weight_type="uint8").write(run, tmp_path)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ValueError, match=r"needs onnxscript, try `pip install 'vdq\[export\]'`"):
        onnx_qdq.OnnxQdqExporter().check(StaticMethod(), DDIMSampler(), FakeQuantBackend())


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported("constant", "quant=tsq_2tr", "bits=w4a6")[1], tmp_path / "onnx_qdq"))


def refused(folder: Path) -> str:
    """The sentence of the loader, which is that of the command line too."""
    with pytest.raises(ValueError) as caught:
        onnx_runtime.load(folder)
    with pytest.raises(SystemExit) as left:
        main([str(folder), "--prompt", "a circle"])
    assert str(left.value) == f"error: {caught.value}" and len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", ["denoiser.data", "denoiser_01.onnx", "null_caption.safetensors"])
def test_damage_is_refused(name, folder):
    file = folder / name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert f"{name} has {len(content) - 1} bytes, its manifest says {len(content)}" in refused(folder)
    file.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert f"{name} is damaged" in refused(folder)
    file.unlink()
    assert f"{name} is missing" in refused(folder)


def changed(folder: Path, change) -> None:
    """Changes the contents of a manifest and signs it again, as somebody might who edits it."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["contents"])
    path.write_text(json.dumps(manifest | {"sha256": artefact._own_digest(manifest)}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["config"]["sampler"].update(steps=20), "sampler.steps=20 must be 4"),
        (lambda c: c["graphs"].pop(), "graphs=3 must be 4"),
        (lambda c: c["graphs"].append("other.onnx"), "names other.onnx for step 4, the artefact has no such file"),
        (lambda c: c["config"]["sampler"].update(_target_="os.system"), "sampler._target_=os.system must be a Sampler"),
    ],
)
def test_contents_that_do_not_fit_together_are_refused(change, reason, folder):
    changed(folder, change)
    assert reason in refused(folder)


def test_contents_of_before_the_type_of_weights_load(folder):
    changed(folder, lambda contents: contents.pop("weight_type"))
    assert onnx_runtime.load(folder).contents["steps"] == "constant"


def test_a_missing_tensor_is_refused(folder):
    """Of which the hashes know nothing."""
    name = files(folder)[0]
    model = onnx.load(folder / name, load_external_data=False)
    kept = [tensor for tensor in model.graph.initializer if not tensor.name.endswith("mlp.fc1.weight_scale")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": artefact._own_digest(manifest)}))
    denoiser = onnx_runtime.load(folder).denoiser
    with pytest.raises(ValueError, match=rf"{name} cannot be loaded by onnxruntime: ") as caught:
        denoiser(torch.zeros(2, 4, 2, 4, 4), torch.zeros(2), torch.zeros(2, 1, 6, 8))
    assert "mlp.fc1" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_another_sampler_is_refused(folder):
    assert onnx_runtime.load(folder, sampler=DDIMSampler(steps=4)).sampler.schedule.num_steps == 4
    with pytest.raises(ValueError, match=r"sampler=IDDPMSampler must be DDIMSampler, as it was exported"):
        onnx_runtime.load(folder, sampler=IDDPMSampler(steps=4))
    with pytest.raises(ValueError, match=r"sampler.steps=5 must be 4, the steps that it was quantized for"):
        onnx_runtime.load(folder, sampler=DDIMSampler(steps=5))


# Command line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--prompt", "a", "--out", "video.avi"], "--out=video.avi must end in .mp4 or .gif"),
        (["--prompt", " "], "--prompt is empty, must say what the video shall show"),
        (["--prompt", "a"], "nowhere is no artefact, it has no manifest.json"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(arguments, reason):
    with pytest.raises(SystemExit) as caught:
        main(["nowhere", *arguments])
    assert str(caught.value) == f"error: {reason}"


@pytest.mark.slow
def test_sampling_imports_neither_lightning_nor_hydra():
    code = (
        "import sys, vdq.export.sample; print(sorted({'pytorch_lightning', 'lightning', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
