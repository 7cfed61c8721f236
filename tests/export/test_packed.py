"""What is loaded samples what was saved, to the bit; what was damaged is refused in one sentence."""

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from torch import nn

from tests.flat_layers import changed, flat
from vdq.backends import FakeQuantBackend, Int8CpuBackend, ReferenceBackend
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.observer import step_observers
from vdq.errors import UserError
from vdq.export import artefact, packed
from vdq.methods import FullPrecisionMethod, StaticMethod
from vdq.models.stdit import FusedLinear
from vdq.quant import apply, model_size, projections, set_bytes
from vdq.quant.codebook import Codebook
from vdq.quant.report import MEGABYTE

FILE = "weights_1.safetensors"
INTEGER = {"int8_cpu": Int8CpuBackend, "reference": ReferenceBackend}
FQN = "blocks.0.mlp.fc1"


def export(run, path: Path) -> Path:
    artefact.write(packed.PackedExporter(), run, path)
    return path


def sample(model: packed.PackedModel, run) -> torch.Tensor:
    return model.sample(run.model.encode(["a", "b"]), PromptNoise(42, [0, 1], model.latent_shape))


@pytest.mark.parametrize("backend", ["fake_quant", *(pytest.param(b, marks=pytest.mark.slow) for b in INTEGER)])
def test_samples_the_same_bits(method_name, backend, make_run, expected_latents, tmp_path):
    integers = ["quant.temporal_bits=null"] if method_name == "qvd" and backend != "fake_quant" else []
    if method_name == "dvd_quant" and backend in INTEGER:
        pytest.skip("quant=dvd_quant runs simulated only")
    run = make_run(f"quant={method_name}", "bits=w4a8", f"backend={backend}", *integers)
    expected = expected_latents(run)
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(sample(packed.load(export(run, tmp_path / "packed")), run), expected)


@pytest.mark.parametrize("settings", [(), ("quant.symmetric_weights=true", "quant.symmetric_acts=true")])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 11, 16])
def test_every_width_of_weights(bits, settings, make_run, expected_latents, tmp_path):
    run = make_run("quant=tsq_2tr", f"bits.weight={bits}", *settings)
    assert torch.equal(sample(packed.load(export(run, tmp_path / "packed")), run), expected_latents(run))


@pytest.mark.parametrize("weight_sets", ["keep", "packed", "requantize"])
def test_wherever_the_weight_sets_are_kept(weight_sets, make_run, expected_latents, tmp_path):
    run = make_run("quant=tsq_4tr", "bits=w6a8")
    path = export(run, tmp_path / "packed")
    model = packed.load(path, backend=FakeQuantBackend(weight_sets))
    twin = copy.deepcopy(model)  # as a Trainer of half precision makes
    expected = expected_latents(run)
    assert torch.equal(sample(model, run), expected) and torch.equal(sample(twin, run), expected)


@pytest.mark.parametrize("backend", INTEGER)
def test_another_backend_samples_what_it_samples_from_full_precision(backend, make_run, expected_latents, tmp_path):
    path = export(make_run("quant=tsq_2tr"), tmp_path / "packed")
    run = make_run("quant=tsq_2tr", f"backend={backend}")
    assert torch.equal(sample(packed.load(path, backend=INTEGER[backend]()), run), expected_latents(run))


@pytest.mark.parametrize("backend", ["fake_quant", *INTEGER])
def test_original_weights_in_place_of_codes_sample_the_same_bits(backend, make_run, expected_latents, tmp_path):
    run = make_run("quant=tsq_tsw", "bits=w6a8", f"backend={backend}")
    artefact.write(packed.PackedExporter(weight_sets="requantize"), run, tmp_path / "packed")
    model = packed.load(tmp_path / "packed")
    assert torch.equal(sample(model, run), expected_latents(run))
    stored = load_file(tmp_path / "packed" / FILE)
    assert not any(name.endswith(".codes") for name in stored)
    assert all(torch.equal(stored[f"{p.fqn}.weight"], p.weight) for p in projections(run.denoiser))
    with pytest.raises(UserError, match="^export.weight_sets=disk must be one of auto, keep, requantize$"):
        packed.PackedExporter(weight_sets="disk")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_sets", ["keep", "requantize"])
def test_weights_in_half_precision_stay_so(weight_sets, dtype, make_run, expected_latents, tmp_path):
    run = make_run("quant=tsq_tsw", "bits=w6a8", "quant.keep=['*.attn.k']")
    run = replace(run, denoiser=copy.deepcopy(run.denoiser).to(dtype))
    expected = expected_latents(run)
    assert not torch.equal(expected, expected_latents(replace(run, denoiser=copy.deepcopy(run.denoiser).float())))
    artefact.write(packed.PackedExporter(weight_sets=weight_sets), run, tmp_path / "packed")
    model = packed.load(tmp_path / "packed")
    # Not with what is used again in several steps, whose sums in half precision depend on the size of the batch.
    noise, conditions = PromptNoise(42, [0, 1], model.latent_shape), run.model.encode(["a", "b"])
    assert torch.equal(run.model.sample(model.denoiser, conditions, noise, model.clock, run.sampler), expected)
    assert {parameter.dtype for parameter in model.denoiser.parameters()} == {dtype}


@pytest.mark.parametrize("kept", [(), ("quant.keep_steps=[1]",)])
@pytest.mark.parametrize("quant", ["tsq_tsw", "asq", "static_plus"])
def test_what_is_smaller_is_stored_and_counted(quant, kept, make_run, expected_latents, tmp_path, monkeypatch):
    """With layers that are not small: four sets of 16-bit codes take twice an fp32 weight, one set half of it."""
    monkeypatch.setattr(set_bytes, "SMALL", 0)
    run = make_run(f"quant={quant}", "bits=w16a16" if quant != "static_plus" else "bits=w8a8", *kept)
    model = packed.load(export(run, tmp_path / "packed"))
    assert torch.equal(sample(model, run), expected_latents(run))
    sources, coded = len(model.contents["sources"]), len(run.state.layers)
    assert sources == (coded if kept or quant == "tsq_tsw" else 0)
    codes = sum(name.endswith(".codes") for name in load_file(tmp_path / "packed" / FILE))
    assert codes == (coded if quant == "static_plus" or sources == 0 else 0)
    stored = sum(model.contents["bytes"].values()) / MEGABYTE
    assert stored == pytest.approx(model_size(run.denoiser, run.state).total, rel=1e-6)


@pytest.mark.parametrize("backend", ["fake_quant", *INTEGER])
def test_kept_layers_and_steps_are_stored_and_sample_the_same_bits(backend, make_run, expected_latents, tmp_path):
    kept = ("quant.keep=['*.attn.k','*.mlp.fc2']", "quant.keep_steps=[0,-1]")
    run = make_run("quant=tsq_tsw", "bits=w6a8", f"backend={backend}", *kept)
    expected = expected_latents(run)
    assert not torch.equal(expected, expected_latents(make_run("quant=tsq_tsw", "bits=w6a8", f"backend={backend}")))
    path = export(run, tmp_path / "packed")
    model = packed.load(path)
    assert torch.equal(sample(model, run), expected)
    assert model.state.kept_steps == (0, 3) and FQN.replace("fc1", "fc2") not in model.state.layers
    stored = sum(model.contents["bytes"].values()) / MEGABYTE
    assert stored == pytest.approx(model_size(run.denoiser, run.state).total, rel=1e-6)
    text = (path / "README.md").read_text()
    assert "| kept layers | 2 in full precision: `*.attn.k`, `*.mlp.fc2` |" in text
    assert "| kept steps | 0, 3 of 0..3 in full precision |" in text


def test_the_card_of_what_is_not_kept_says_nothing_of_it(make_run, tmp_path):
    assert "keep" not in (export(make_run("quant=asq"), tmp_path / "packed") / "README.md").read_text()


SINGLE = ["shift", "rotation", "correction", "bits", "codes", "branch", "groups"]
PARTS = [*SINGLE, " ".join(SINGLE)]


@pytest.mark.parametrize("backend", ["fake_quant", *(pytest.param(b, marks=pytest.mark.slow) for b in INTEGER)])
@pytest.mark.parametrize("parts", PARTS)
def test_transforms_bits_codes_and_groups(parts, backend, make_run, expected_latents, extended_state, tmp_path):
    run = make_run("quant=tsq_2tr", "bits=w4a8", f"backend={backend}")
    plain = expected_latents(run)
    run = replace(run, state=extended_state(run.denoiser, run.state, parts))
    expected = expected_latents(run)
    assert expected.isfinite().all() and not torch.equal(expected, plain)
    model = packed.load(export(run, tmp_path / "packed"))
    assert torch.equal(sample(model, run), expected)
    weights = {p.fqn: p.weight for p in projections(run.denoiser)}
    for fqn, params in run.state.layers.items():
        found = model.state.layers[fqn]
        coded = params.with_codes(weights[fqn])
        assert found.description() == coded.description()
        assert all(torch.equal(value, found.tensors()[name]) for name, value in coded.tensors().items())
    stored = sum(model.contents["bytes"].values()) / MEGABYTE
    assert stored == pytest.approx(model_size(run.denoiser, run.state).total, rel=1e-6)


@pytest.mark.parametrize("quant", ["static_plus", "qvd"])
def test_a_shift_of_one_input_is_stored_once(quant, make_run, tmp_path):
    run = make_run(f"quant={quant}", "bits=w4a8")
    path = export(run, tmp_path / "packed")
    end = ".shift.values"
    stored = {name.removesuffix(end) for name in load_file(path / FILE) if name.endswith(end)}
    assert {f"blocks.0.attn.{part}" for part in "qkv"} & stored == {"blocks.0.attn.q"} and FQN in stored
    shifts = {fqn: flat(quant).shift for fqn, quant in packed.load(path).state.layers.items()}
    for fqn, quant in run.state.layers.items():
        assert shifts[fqn] is None or torch.equal(shifts[fqn], flat(quant).shift)
    assert shifts["blocks.0.attn.v"] is shifts["blocks.0.attn.q"] is not None


def test_a_shift_that_no_layer_stores_is_refused(make_run, tmp_path):
    path, end = export(make_run("quant=qvd"), tmp_path / "packed"), "shift.values"
    sealed(path, lambda m: m["contents"]["same"].update({f"blocks.0.attn.v.{end}": f"blocks.0.attn.k.{end}"}))
    with pytest.raises(UserError, match=f"lacks tensor blocks.0.attn.k.{end}, which stands for blocks.0.attn.v.{end}$"):
        packed.load(path)


def test_codebooks(make_run, expected_latents, tmp_path):
    run = make_run("quant=asq_tsw")
    book = Codebook(torch.linspace(-3, 3, 8), torch.linspace(-2.5, 2.5, 7))
    layers = {fqn: changed(quant, act=None, codebook=book) for fqn, quant in run.state.layers.items()}
    run = replace(run, state=replace(run.state, layers=layers))
    assert torch.equal(sample(packed.load(export(run, tmp_path / "packed")), run), expected_latents(run))


def test_bits_that_are_chosen_while_sampling(make_run, expected_latents, tmp_path):
    run = make_run("quant=dvd_quant", "bits=w4a4", "quant.delta=0.5")
    model = packed.load(path := export(run, tmp_path / "packed"))
    assert torch.equal(sample(model, run), expected_latents(run))
    (switch,) = step_observers(model.denoiser)
    assert {bits for record in switch.records() for bits in record["act_bits"]} == {4, 8}
    assert "dynamic: 4, 8 bits" in (path / "README.md").read_text()


def test_batch_shared_ranges_and_ancestral_noise(make_run, expected_latents, tmp_path):
    run = make_run("quant=dynamic", "quant.token_granularity=token_shared", "sampler=iddpm_20")
    assert torch.equal(sample(packed.load(export(run, tmp_path / "packed")), run), expected_latents(run))


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_codes_on_disk_are_numpys(bits, make_run, tmp_path):
    """Of every weight set: section 2.1 in numpy, packed by numpy."""
    run = make_run("quant=tsq_tsw", f"bits.weight={bits}")
    tensors = load_numpy(export(run, tmp_path / "packed") / FILE)
    weight = run.denoiser.get_submodule(FQN).weight.numpy()
    stored = {name: tensors[f"{FQN}.stored_codes.{name}"] for name in ("scale", "zero_point", "codes")}
    smoothing = tensors[f"{FQN}.smoothing.factors"]
    assert len(smoothing) == len(stored["codes"]) == 4 and stored["codes"].shape[1] == weight.size * bits // 8
    for s, scale, zero, codes in zip(smoothing, stored["scale"], stored["zero_point"], stored["codes"], strict=True):
        expected = np.clip(np.rint(weight * s / scale) + zero, 0, 2**bits - 1).astype(np.uint8)
        columns = np.unpackbits(expected.reshape(-1, 1), axis=1, bitorder="little")[:, :bits]
        np.testing.assert_array_equal(codes, np.packbits(columns.ravel(), bitorder="little"))


def test_no_weight_of_a_quantized_layer_is_stored(method_name, make_run, tmp_path):
    run = make_run(f"quant={method_name}")
    tensors = load_file(export(run, tmp_path / "packed") / FILE)
    assert not {f"{fqn}.weight" for fqn in run.state.layers} & tensors.keys()
    assert not [name for name in tensors if name.endswith("qkv.weight")]
    rest = run.denoiser.state_dict()
    quantized = {name for name in rest if name.startswith("blocks.") and name.endswith(".weight")}
    kept = rest.keys() - quantized - {f"{fqn}.weight" for fqn in run.state.layers}
    assert all(torch.equal(tensors[name], rest[name]) for name in kept)
    assert kept | {f"{fqn}.stored_codes.codes" for fqn in run.state.layers} <= tensors.keys()


@pytest.mark.parametrize("bits", [3, 8, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (6, 16))])
def test_measured_size_is_the_computed_one(method_name, bits, make_run, tmp_path):
    """Within the safetensors header, part by part."""
    run = make_run(f"quant={method_name}", f"bits.weight={bits}")
    path, computed = tmp_path / "packed", model_size(run.denoiser, run.state)
    parts = artefact.write(packed.PackedExporter(), run, path)["contents"]["bytes"]
    full = parts.pop(packed.FULL_PRECISION)
    weights = parts.pop("integer weights")
    for found, expected in ((full, computed.full_precision), (weights, computed.weights)):
        assert found == pytest.approx(expected * MEGABYTE, abs=0.5)
    assert sum(parts.values()) == pytest.approx(computed.parameters * MEGABYTE, abs=0.5)
    with (path / FILE).open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    assert (path / FILE).stat().st_size == pytest.approx(computed.total * MEGABYTE + header, abs=0.5)


def test_large_models_are_written_in_several_files(make_run, expected_latents, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHARD_BYTES", 20_000)
    run = make_run("quant=tsq_2tr")
    path = export(run, tmp_path / "packed")
    files = sorted(path.glob("*.safetensors"))
    assert len(files) > 3 and max(file.stat().st_size for file in files) < 60_000
    assert torch.equal(sample(packed.load(path), run), expected_latents(run))


class Net(nn.Module):
    """A fused linear of which one part stays in full precision."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.dimensions = {"width": width}
        self.attn = nn.Module()
        self.attn.qkv = FusedLinear(width, 3 * width, parts=("q", "k", "v"))
        self.fc = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attn.qkv(x)
        return self.fc(q * k + v)


def test_parts_of_a_fused_linear_may_stay_in_full_precision(tmp_path):
    torch.manual_seed(0)
    net, method = Net().requires_grad_(False), StaticMethod(weight_bits=4, num_time_ranges=2)
    stats = {"min": -torch.ones(2, 6), "max": torch.ones(2, 6)}
    layers = {
        fqn: method.layer(weight, type("Stats", (), stats), 2)
        for fqn, weight in (("attn.q", net.attn.qkv.weight[:6]), ("attn.v", net.attn.qkv.weight[12:]))
    }
    state = packed.QuantState(layers, 2)
    contents = packed.write_tensors(net, state, tmp_path) | {"num_steps": 2}
    tensors = load_file(tmp_path / FILE)
    assert torch.equal(tensors["attn.k.weight"], net.attn.qkv.weight[6:12]) and "attn.qkv.weight" not in tensors
    assert packed.expected_tensors(net, contents).keys() == tensors.keys()
    with torch.device("meta"):
        empty = Net()
    coded = packed.QuantState(packed.restored_layers(empty, contents, tensors, tmp_path), 2)
    loaded = apply(packed.filled(empty, tensors), coded, StepClock(2), FakeQuantBackend())
    x = torch.randn(3, 6)
    assert torch.equal(loaded(x), apply(net, state, StepClock(2), FakeQuantBackend())(x))


@pytest.mark.slow
def test_loading_needs_neither_lightning_nor_hydra(make_run, tmp_path):
    path = export(make_run("quant=asq"), tmp_path / "packed")
    code = (
        "import sys; from vdq.export import packed; packed.load(sys.argv[1]); "
        "print(sorted({'pytorch_lightning', 'lightning', 'hydra', 'wandb'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_full_precision_is_refused(make_run):
    run = make_run("quant=asq")
    with pytest.raises(ValueError, match=r"^export=packed stores integer weights, quant=fp16 has none"):
        packed.PackedExporter().check(FullPrecisionMethod(), run.sampler, run.backend)


def test_card_says_what_it_is(method_name, make_run, tmp_path):
    path = export(make_run(f"quant={method_name}", "bits=w6a8"), tmp_path / "packed")
    card, contents = (path / "README.md").read_text(), json.loads((path / "manifest.json").read_text())["contents"]
    bits = "6, 8" if method_name == "qvd" else "6"  # its temporal layers have 8
    assert f"quant={method_name}" in card and f"with {bits}-bit weights" in card and "`0123456789`" in card
    assert "| weights | 6 bits per output channel" in card
    dynamic = method_name in ("dynamic", "dvd_quant")
    assert ("dynamic: 8 bits" in card) == dynamic == ("static: 8 bits" not in card)
    assert all(f"| {part} | {count:,} |" in card for part, count in contents["bytes"].items())
    assert "Licence" in card and "{" not in card


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(make_run, tmp_path_factory) -> Path:
    return export(make_run("quant=tsq_2tr", "bits=w4a8"), tmp_path_factory.mktemp("sound") / "packed")


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "packed"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sealed(folder: Path, change: Callable[[dict], None] = lambda manifest: None) -> None:
    """A manifest that fits the files, after a change: what a wrong exporter would write."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    for name, facts in manifest["files"].items():
        content = (folder / name).read_bytes()
        facts |= {"bytes": len(content), "sha256": sha256(content)}
    change(manifest)
    digest = sha256(json.dumps(manifest, sort_keys=True).encode())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest}))


def edited(folder: Path, change: Callable[[dict], None]) -> None:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE)
    sealed(folder)


def test_sealed_helper_makes_what_loads(folder):
    edited(folder, lambda tensors: None)
    packed.load(folder)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "no folder": (shutil.rmtree, "is no artefact, it has no manifest.json"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is no artefact, it has no manifest.json"),
    "half a manifest": (lambda f: cut(f / "manifest.json"), r"manifest.json cannot be read \("),
    "another manifest": (lambda f: (f / "manifest.json").write_text('{"a": 1}'), "is not the manifest of an artefact"),
    "a list": (lambda f: (f / "manifest.json").write_text("[1]"), "is not the manifest of an artefact"),
    "edited manifest": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace("steps", "step")),
        "manifest.json is damaged: its content does not have the SHA-256",
    ),
    "no weights": (lambda f: (f / FILE).unlink(), rf"{FILE} is missing"),
    "truncated": (lambda f: cut(f / FILE), rf"{FILE} has \d+ bytes, its manifest says \d+"),
    "one bit": (lambda f: flip(f / FILE), rf"{FILE} is damaged: its SHA-256 is not"),
    "one bit of the card": (lambda f: flip(f / "README.md"), "README.md is damaged: its SHA-256 is not"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_with_one_sentence(kind, folder):
    damage, sentence = DAMAGE[kind]
    damage(folder)
    with pytest.raises(ValueError, match=sentence) as error:
        packed.load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


WRONG = {
    "kind": (lambda m: m.update(kind="onnx_qdq"), "kind=onnx_qdq cannot be loaded; packed is allowed"),
    "version": (lambda m: m.update(version=1), "version=1 cannot be loaded; 2 is allowed; export it again$"),
    "steps": (
        lambda m: m["contents"]["config"]["sampler"].update(steps=10),
        "sampler.steps=10 must be 4, the steps that its tables are for",
    ),
    "tables": (
        lambda m: (m["contents"].update(num_steps=2), m["contents"]["config"]["sampler"].update(steps=2)),
        "layer blocks.0.attn.q has 4 steps, must be 2$",
    ),
    "sampler": (
        lambda m: m["contents"]["config"]["sampler"].update(_target_="vdq.diffusion.samplers.Euler"),
        "sampler._target_=vdq.diffusion.samplers.Euler must be a Sampler of the package vdq",
    ),
    "foreign code": (
        lambda m: m["contents"]["config"]["backend"].update(_target_="subprocess.run"),
        "backend._target_=subprocess.run must be a Backend of the package vdq",
    ),
    "foreign code through us": (
        lambda m: m["contents"]["denoiser"].update(_target_="vdq.tracking.manifest.subprocess.Popen"),
        "denoiser._target_=vdq.tracking.manifest.subprocess.Popen must be a Module of the package vdq",
    ),
    "arguments": (
        lambda m: m["contents"]["denoiser"].update(colour="red"),
        "denoiser: STDiT of this version takes other arguments .*colour",
    ),
    "width": (
        lambda m: m["contents"]["denoiser"].update(hidden_size=32),
        r"tensor t_embedder.mlp.0.weight is float32 \[24, 256\], must be float32 \[32, 256\]",
    ),
    "depth": (lambda m: m["contents"]["denoiser"].update(depth=2), "lacks .* tensors, such as blocks.1"),
    "bits": (
        lambda m: next(part for part in m["contents"]["layers"][FQN] if part["kind"] == "stored_codes").update(bits=6),
        rf"layer {FQN}: stored_codes.codes is \[2, .*, must be \[2, ",
    ),
    "part": (
        lambda m: m["contents"]["layers"][FQN][0].update(kind="wavelet"),
        rf"layer {FQN}: kind=wavelet is no known part of a layer",
    ),
    "layer": (lambda m: m["contents"]["layers"].pop(FQN), rf"lacks 1 of .* tensors, such as {FQN}.weight"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_configuration_that_does_not_fit_is_refused(kind, folder):
    change, sentence = WRONG[kind]
    sealed(folder, change)
    with pytest.raises(ValueError, match=sentence) as error:
        packed.load(folder)
    assert "\n" not in str(error.value)


CODES, ACTS = f"{FQN}.stored_codes", f"{FQN}.static"
TENSORS = {
    "missing codes": (lambda t: t.pop(f"{CODES}.codes"), rf"lacks 1 of \d+ tensors, such as {CODES}.codes"),
    "missing bias": (lambda t: t.pop(f"{FQN}.bias"), rf"lacks 1 of \d+ tensors, such as {FQN}.bias"),
    "missing smoothing": (lambda t: t.pop(f"{FQN}.smoothing.factors"), rf"such as {FQN}.smoothing.factors"),
    "extra": (lambda t: t.update(spy=torch.zeros(1)), "has 1 tensors that no layer needs, such as spy"),
    "shape": (
        lambda t: t.update({f"{ACTS}.scale": torch.ones(3)}),
        rf"tensor {ACTS}.scale is float32 \[3\], must be float32 \[2\]",
    ),
    "dtype": (
        lambda t: t.update({f"{CODES}.scale": t[f"{CODES}.scale"].half()}),
        rf"tensor {CODES}.scale is float16 .*, must be float32",
    ),
    "one set less": (
        lambda t: t.update({f"{CODES}.codes": t[f"{CODES}.codes"][:1]}),
        rf"tensor {CODES}.codes is uint8 \[1, ",
    ),
    "a range that is not there": (
        lambda t: t.update({f"{FQN}.smoothing.steps": t[f"{FQN}.smoothing.steps"] + 1}),
        rf"layer {FQN}: smoothing.factors has 2 rows, must have one for each of 1..2",
    ),
    "act range": (
        lambda t: t.update({f"{ACTS}.steps": t[f"{ACTS}.steps"] - 1}),
        rf"layer {FQN}: static.scale has 2 rows, must have one for each of -1..0",
    ),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_do_not_fit_are_refused(kind, folder):
    change, sentence = TENSORS[kind]
    edited(folder, change)
    with pytest.raises(ValueError, match=sentence) as error:
        packed.load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_safetensors_is_refused(folder):
    (folder / FILE).write_bytes(b"x" * 99)
    sealed(folder)
    with pytest.raises(ValueError, match=rf"{FILE} must be a whole safetensors file"):
        packed.load(folder)


def test_a_clock_of_other_steps_is_refused(sound):
    with pytest.raises(ValueError, match="clock.num_steps=10 must be 4"):
        packed.load(sound, clock=StepClock(10))


# The folder -----------------------------------------------------------------------------------------------------------


def test_an_interrupted_export_leaves_what_was_there(sound, make_run, tmp_path, monkeypatch):
    path = Path(shutil.copytree(sound, tmp_path / "packed"))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    monkeypatch.setattr(packed, "card", lambda *_: 1 / 0)
    for target in (path, tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            export(make_run("quant=asq"), target)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_artefact_is_replaced_as_a_whole_and_nothing_else_is(sound, make_run, tmp_path):
    path = Path(shutil.copytree(sound, tmp_path / "packed"))
    (path / "old.txt").write_text("old")
    assert packed.load(export(make_run("quant=asq"), path)).contents["config"]["quant"]["name"] == "asq"
    assert not (path / "old.txt").exists() and list(tmp_path.iterdir()) == [path]
    mine = tmp_path / "mine"
    mine.mkdir()
    export(make_run("quant=asq"), mine)  # an empty folder is filled
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match=r"export.path=.*other exists and is no artefact of this program"):
        export(make_run("quant=asq"), other)
    assert (other / "thesis.tex").read_text() == "years"
