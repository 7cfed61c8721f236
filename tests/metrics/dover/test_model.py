"""Loading weights, and what the networks' caches promise; their numbers are checked in tests/parity/test_dover.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vdq.metrics.dover import published
from vdq.metrics.dover.convnext import ConvNeXt3D, ConvNeXtV23D
from vdq.metrics.dover.model import Dover
from vdq.metrics.dover.swin import SwinTransformer3D, window_kinds
from vdq.sources import sha256


def small_dover(seed: int = 0) -> Dover:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        swin = SwinTransformer3D(
            embed_dim=8, depths=(2, 1), num_heads=(1, 2), window_size=(2, 3, 3), frag_biases=(True, False)
        )
        return Dover(swin, ConvNeXt3D(depths=(1, 1), dims=(4, 8)), hidden_channels=4, name="small").eval()


def small_mobile() -> Dover:
    backbones = [ConvNeXtV23D(depths=(1, 1), dims=(4, 8), num_classes=3) for _ in range(2)]
    return Dover(*backbones, hidden_channels=4, name="small mobile").eval()


def write(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.clone() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def same(first: Dover, second: Dover) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("name", "wrapped"), [("a.pth", False), ("a.pth", True), ("a.safetensors", False)])
def test_loads_every_kind_of_file(tmp_path: Path, name: str, wrapped: bool) -> None:
    source, target = small_dover(1), small_dover(2)
    content = source.state_dict()
    path = write(tmp_path / name, {"state_dict": content} if wrapped else content)
    assert not same(source, target)
    assert target.load_published(path) is target and same(source, target)


def refusal(path: Path) -> str:
    model = small_dover()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        model.load_published(path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def test_refuses_another_architecture(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "m.pth", small_mobile().state_dict()))
    assert "tensors of small, but looks like DOVER-Mobile" in message
    assert "missing (technical_backbone.patch_embed.proj.weight, " in message and "unexpected" in message


def test_refuses_heads_alone(tmp_path: Path) -> None:
    heads = {key: value for key, value in small_dover().state_dict().items() if "_head." in key}
    assert "holds heads without their backbones" in refusal(write(tmp_path / "h.pth", heads))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("technical_head.fc_last.bias", lambda value: value.new_zeros(2)),
        ("technical_backbone.layers.0.blocks.0.attn.relative_position_index", lambda value: value + 1),
        ("aesthetic_head.fc_last.bias", lambda value: 3.0),
    ],
)
def test_refuses_tensors_that_do_not_fit(tmp_path: Path, key: str, change) -> None:
    content = small_dover().state_dict()
    message = refusal(write(tmp_path / "w.pth", content | {key: change(content[key])}))
    assert f"1 of another shape or content ({key})" in message


def test_refuses_files_that_are_no_weights(tmp_path: Path) -> None:
    damaged = tmp_path / "d.pth"
    damaged.write_bytes(b"no zip file")
    assert "must be a whole .safetensors file" in refusal(damaged)
    assert "FileNotFoundError" in refusal(tmp_path / "absent.pth")
    assert "no code is run" in refusal(write(tmp_path / "code.pth", {"state_dict": small_dover()}))
    assert "not a list" in refusal(write(tmp_path / "list.pth", [torch.zeros(1)]))


def test_published_names_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "build_dover", small_dover)
    path = write(tmp_path / "DOVER.pth", small_dover(1).state_dict())
    model = published.dover(str(path), str(tmp_path / "cache"))
    assert model.sha256 == sha256(path, tmp_path / "cache") and len(model.sha256) == 64
    assert same(model, small_dover(1)) and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_refuses_an_unknown_branch() -> None:
    with pytest.raises(ValueError, match="branch='resize' must be one of technical, aesthetic"):
        small_dover().score_map(torch.zeros(1, 3, 4, 32, 32), "resize")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SwinTransformer3D(depths=(2, 2)), "one entry for each of the 2 depths"),
        (lambda: SwinTransformer3D(embed_dim=8), "must divide the stages' channels"),
        (lambda: ConvNeXt3D(dims=(8, 16)), "one entry for each of depths"),
        (lambda: ConvNeXt3D(inflate_strategy="12"), "inflate_strategy='12'"),
    ],
)
def test_refuses_bad_settings(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_clip_is_scored_alike_alone_and_in_a_batch() -> None:
    model, clips = small_dover(), torch.randn(2, 3, 8, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for branch in ("technical", "aesthetic"):
            alone = torch.cat([model(clip[None], branch) for clip in clips])
            torch.testing.assert_close(model(clips, branch), alone, atol=1e-6, rtol=0)


def testwindow_kinds_of_the_published_size_are_small_and_complete() -> None:
    """Stage 1 of a 224 x 224 x 32 clip, shifted: every window is of one kind, whose labels give its gamma."""
    size, window, shift = (16, 56, 56), (8, 7, 7), (4, 3, 3)
    kinds = window_kinds(size, window, shift, True)
    assert sorted(row for kind in kinds for row in kind.rows.tolist()) == list(range(2 * 8 * 8))
    assert sum(kind.labels.nbytes + kind.rows.nbytes for kind in kinds) < 1e6
    last = next(kind for kind in kinds if 2 * 8 * 8 - 1 in kind.rows)
    # First and last token of the last window: rows 52..55 and the rolled 0..2 of fragments 6 and 0, twice.
    assert gamma(last.labels)[0, -1] == 12 and last.labels[2, 0] != last.labels[2, -1]


def gamma(labels: Tensor) -> Tensor:
    return (labels[:2, :, None] - labels[:2, None, :]).abs().sum(0)


def test_network_can_be_trained_after_it_was_used_without_gradients() -> None:
    model = small_dover()
    clips = torch.randn(1, 3, 4, 48, 48)
    with torch.inference_mode():
        model(clips, "technical")
    model(clips, "technical").sum().backward()
    assert model.technical_backbone.layers[0].blocks[1].attn.fragment_position_bias_table.grad.abs().sum() > 0
