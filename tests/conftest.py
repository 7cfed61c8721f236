"""Shared helpers: where the golden fixtures are, and one test case per golden file of a kind."""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.flat_layers import changed, flat, weight_grid
from vdq.models.stdit import STDiT
from vdq.quant import LayerQuant, QParams, QuantState, projections
from vdq.quant.low_rank import low_rank
from vdq.quant.transform import shift_correction
from vdq.quant.weight_codes import pack_codes

OWN = Path(__file__).parent / "fixtures"
BESIDE = Path(__file__).parents[2] / "shared"  # beside the checkout, where there is one: larger cases, and media
# Where golden files are, the first folder that has a file counts.
FIXTURES = [Path(os.environ["VDQ_FIXTURES"])] if "VDQ_FIXTURES" in os.environ else [OWN, BESIDE / "fixtures"]
MISSING = "no such golden file; see tests/fixtures/README.md"
# The result of a run as the program writes it, made up.
RESULT = {
    "dataset": "shapes",
    "model": "shapes",
    "kind": "static",
    "changed": "",
    "higher_is_better": {"clipsim": True, "latent_rel_l2": False},
    "clipsim": 0.25,
    "latent_rel_l2": 0.5,
    "size_mb": 2.5,
    "metrics": "m",
    "assets": {"clip": "0" * 64},
}


@dataclass(frozen=True)
class Golden:
    """One .json/.safetensors pair: configuration and tensors."""

    path: Path
    config: dict
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `prefix`, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def beside(self, stem: str) -> "Golden":
        """Another pair of the same folder."""
        return Golden.load(self.path.with_name(f"{stem}.json"))

    @classmethod
    def load(cls, path: Path) -> "Golden":
        from safetensors.torch import load_file  # a bare GPU machine, which runs the tests of int8_cuda, has none

        return cls(path, json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(folder, kind): once per golden file of that kind, as argument `golden`")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        paths = _golden_paths(*marker.args)
        missing = [pytest.param(None, marks=pytest.mark.skip(reason=MISSING), id="missing")]
        params = [pytest.param(path, id=path.stem) for path in paths] or missing
        metafunc.parametrize("golden", params, indirect=True, scope="module")


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.load(request.param)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Root of the golden fixtures; skips the test when it is missing."""
    if not FIXTURES[0].is_dir():
        pytest.skip(f"VDQ_FIXTURES={FIXTURES[0]} is no folder")
    return FIXTURES[0]


@pytest.fixture(scope="session")
def every_fixtures() -> list[Path]:
    """Every folder of golden fixtures that is there; the first one that has a case counts."""
    return [folder for folder in FIXTURES if folder.is_dir()]


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    """How the videos and weights of CLIP's and DOVER's fixtures are made."""
    spec = importlib.util.spec_from_file_location("recipe", OWN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def media() -> Path:
    """Published videos and prompts, which are not ours to distribute; skips the test when they are missing."""
    folder = BESIDE / "data"
    if not folder.is_dir():
        pytest.skip("published videos and prompts are not in the repository: ../shared/data is missing")
    return folder


@pytest.fixture(scope="session")
def small_stdit() -> Callable[..., STDiT]:
    """Makes an STDiT of width 32, 2 frames and 4 tokens a frame, each weight matrix random: upstream's zero branches
    would hide layers. Its arguments are STDiT's.
    """

    def make(**dimensions: int) -> STDiT:
        small = {"input_size": (2, 4, 4), "hidden_size": 32, "depth": 2, "num_heads": 2}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = STDiT(**small | {"caption_channels": 8, "model_max_length": 6} | dimensions)
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.2)
        return net.eval().requires_grad_(False)

    return make


def extended_layer(quant: LayerQuant, weight: Tensor, rows: int, parts: str) -> LayerQuant:
    """A layer with the named parts: shift, rotation, correction, bits, codes, branch (low_rank) and groups
    (of a video's `rows` token rows), all of them different at every activation range or step.
    """
    weight, steps, params = weight.detach().float(), quant.num_steps, flat(quant)
    bits, channels, count = params.act_bits, weight.shape[1], quant.act.num_ranges or quant.weight.num_sets
    generator = torch.Generator().manual_seed(channels)
    changes: dict = {}
    if "shift" in parts:
        changes["shift"] = torch.randn(count, channels, generator=generator) / 4
    if "rotation" in parts:
        symmetric = params.symmetric_weights
        qparams = weight_grid(weight, params.smoothing, bits=params.weight_bits, symmetric=symmetric, rotation=8)
        changes |= {"rotation": 8, "weight": qparams}
    if "correction" in parts:
        changes["correction"] = torch.randn(count, len(weight), generator=generator) / 10
        if "shift" in parts:
            changes["correction"] += shift_correction(weight, changes["shift"])
    if "bits" in parts:
        changes["step_bits"] = torch.tensor([bits, bits - 2, bits - 1, bits])[torch.arange(steps) % 4]
    quant = changed(quant, **changes)
    if "codes" in parts:  # that no rounding gives: every channel has its neighbour's
        codes = (quant.weight_codes(weight, set_).roll(1, 1) for set_ in range(quant.weight.num_sets))
        packed = pack_codes(codes, bits=params.weight_bits, symmetric=params.symmetric_weights)
        quant = changed(quant, codes=packed)
    if "branch" in parts:
        branch = low_rank(torch.randn(weight.shape, generator=generator) / 9, 3)
        quant = changed(quant, codes=quant.packed_codes(weight), low_rank=branch)
    if "groups" in parts:
        scale, zero_point = params.act
        act = QParams(torch.stack([scale, 1.5 * scale], 1), torch.stack([zero_point, (0.7 * zero_point).round()], 1))
        quant = changed(quant, act=act, act_group=torch.arange(rows) * 2 // rows)
    return quant


@pytest.fixture(scope="session")
def extended() -> Callable[..., LayerQuant]:
    return extended_layer


@pytest.fixture(scope="session")
def extended_state() -> Callable[..., QuantState]:
    """The same of all layers of an STDiT: (denoiser, state, parts); packed captions have no groups."""

    def make(denoiser: nn.Module, state: QuantState, parts: str) -> QuantState:
        weights = {p.fqn: p.weight for p in projections(denoiser)}
        rows = prod(n // p for n, p in zip(denoiser.input_size, denoiser.patch_size, strict=True))
        layers = {}
        for fqn, quant in state.layers.items():
            own = parts.replace("groups", "") if fqn.endswith("kv_linear") else parts
            layers[fqn] = extended_layer(quant, weights[fqn], rows, own)
        return replace(state, layers=layers)

    return make


def _golden_paths(folder: str, kind: str) -> list[Path]:
    found = {path.name: path for root in reversed(FIXTURES) for path in (root / folder).glob("*.json")}
    pairs = (path for _, path in sorted(found.items()) if path.with_suffix(".safetensors").exists())
    return [path for path in pairs if json.loads(path.read_text()).get("kind") == kind]


@dataclass(frozen=True)
class TinyOpenSora:
    """Open-Sora's parts in small, on disk as they are published: the denoiser as a `.pth` of upstream's layout."""

    folder: Path
    prompts: Path

    @property
    def overrides(self) -> list[str]:
        """Command-line settings of `model=opensora_v1_512` for these files."""
        dimensions = {"hidden_size": 48, "depth": 2, "num_heads": 4, "caption_channels": 32, "model_max_length": 20}
        weights = {
            "denoiser": self.folder / "denoiser.pth",
            "autoencoder": self.folder / "autoencoder",
            "text_encoder": self.folder / "text_encoder",
        }
        return [
            "model=opensora_v1_512",
            "model.image_size=[32,48]",
            "model.num_frames=4",
            "dataset=opensora",
            f"dataset.prompts={self.prompts}",
            f"dataset.calibration_prompts={self.prompts}",
            *(f"model.denoiser.{name}={value}" for name, value in dimensions.items()),
            *(f"model.weights.{part}={path}" for part, path in weights.items()),
        ]


@pytest.fixture(scope="session")
def tiny_opensora(tmp_path_factory: pytest.TempPathFactory) -> TinyOpenSora:
    from diffusers import AutoencoderKL
    from sentencepiece import SentencePieceTrainer
    from transformers import T5Config, T5EncoderModel

    from vdq.models.stdit import STDiT

    folder = tmp_path_factory.mktemp("opensora")
    prompts = folder / "prompts.txt"
    prompts.write_text("A red kite over the sea.\nTwo turtles swim (slowly) past https://example.com a reef.\n")
    text_encoder = folder / "text_encoder"
    text_encoder.mkdir()
    SentencePieceTrainer.train(
        input=str(prompts),
        model_prefix=str(text_encoder / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (text_encoder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=48, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
        T5EncoderModel(config).save_pretrained(text_encoder)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
            latent_channels=4,
        ).save_pretrained(folder / "autoencoder")
        net = STDiT(
            input_size=(16, 8, 8),  # another size than is sampled: the checkpoint's position tables are not used
            hidden_size=48,
            depth=2,
            num_heads=4,
            caption_channels=32,
            model_max_length=20,
        )
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        torch.save({"ema": net.state_dict()}, folder / "denoiser.pth")
    return TinyOpenSora(folder, prompts)


@pytest.fixture
def finish(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a finished run below ``tmp_path``."""

    def make(name: str, **fields: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        result = {**RESULT, "name": name, "quant": name, "bits": "w8a8", "signature": name, "reference": "fp16"}
        result |= {"finished": "2026-01-01T00:00:00+00:00"} | fields
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make
