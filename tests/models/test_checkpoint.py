"""Checkpoints as they are released, and everything that can be wrong with one."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vdq.models import checkpoint
from vdq.models.checkpoint import load_denoiser
from vdq.models.stdit import STDiT

SMALL = dict(
    input_size=(2, 4, 6), hidden_size=32, depth=2, num_heads=4, caption_channels=8, model_max_length=5, mlp_ratio=2.0
)
TABLES = ("pos_embed", "pos_embed_temporal")
LEGACY = {"_use_new_zipfile_serialization": False}


def build(**change):
    return lambda: STDiT(**SMALL | change)


@pytest.fixture
def state():
    """A state dict without position tables, of values that no initialization gives."""
    torch.manual_seed(0)
    return {
        name: torch.randn_like(value) / 5 for name, value in STDiT(**SMALL).state_dict().items() if name not in TABLES
    }


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def saved(content, path, **options):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, **options)
    return path


def refusal(path, cache, **change):
    """The sentence; whatever was refused leaves no converted file, whole or half."""
    with pytest.raises(ValueError) as caught:
        load_denoiser(build(**change), path, cache)
    text = str(caught.value)
    assert text.startswith(f"model.weights.denoiser={path} must ") and len(text.splitlines()) == 1
    assert not list(cache.glob("weights/*"))
    return text


def assert_holds(net, state):
    loaded = {name: value for name, value in net.state_dict().items() if name not in TABLES}
    assert loaded.keys() == state.keys()
    for name, value in loaded.items():
        assert torch.equal(value, state[name].float()), name


@pytest.mark.parametrize("name", ["flat.pth", "flat.pt", "flat.safetensors"])
def test_every_tensor_arrives_ready_for_inference(state, tmp_path, cache, name):
    net = load_denoiser(build(), saved(state, tmp_path / name), cache)
    assert_holds(net, state)
    assert not net.training and not any(parameter.requires_grad for parameter in net.parameters())
    assert {value.device.type for value in net.state_dict().values()} == {"cpu"}
    x, t, y = torch.randn(1, 4, 2, 4, 6), torch.tensor([7]), torch.randn(1, 1, 5, 8)
    ordinary = STDiT(**SMALL)
    ordinary.load_state_dict(state, strict=False)
    torch.testing.assert_close(net(x, t, y), ordinary(x, t, y), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("nested", [True, False])
def test_position_tables_of_another_size_are_replaced(state, tmp_path, cache, nested):
    content = {**state, "pos_embed": torch.ones(1, 99, 32), "pos_embed_temporal": torch.ones(1, 9, 32)}
    path = saved({"ema": content, "epoch": 3} if nested else content, tmp_path / "file.pth")
    net = load_denoiser(build(space_scale=0.5), path, cache)
    assert_holds(net, state)
    for name, table in STDiT(**SMALL, space_scale=0.5).named_buffers():
        if name in TABLES:
            assert torch.equal(net.get_buffer(name), table) and table.any()


def test_position_tables_have_values_where_the_default_device_has_none():
    with torch.device("meta"):
        net = STDiT(**SMALL)
        tables = net.position_tables()
    assert all(value.is_meta for value in net.state_dict().values())
    for name, table in tables.items():
        assert torch.equal(table, STDiT(**SMALL).get_buffer(name)) and table.any()
    net.load_state_dict(STDiT(**SMALL).state_dict() | tables, assign=True)
    assert not any(value.is_meta for value in net.state_dict().values())


def test_parameters_and_views_are_read_as_any_tensor(state, tmp_path, cache):
    """What an optimizer or a split leaves behind: tensors that want gradients, and rows of a larger transposed one."""
    state["t_block.1.bias"] = torch.nn.Parameter(state["t_block.1.bias"])
    state["blocks.0.attn.proj.weight"] = torch.randn(32, 64).t()[:32]
    assert_holds(load_denoiser(build(), saved(state, tmp_path / "file.pth"), cache), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_precisions_become_fp32(state, tmp_path, cache, dtype, suffix):
    state = {name: value.to(dtype) for name, value in state.items()}
    net = load_denoiser(build(), saved(state, tmp_path / f"file.{suffix}"), cache)
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
    assert_holds(net, state)


def test_fp32_safetensors_is_not_copied(state, tmp_path, cache, monkeypatch):
    """The tensors are those that the safetensors library mapped."""
    given = {}
    monkeypatch.setattr(checkpoint, "load_file", lambda path: given.setdefault(path, load_file(path)))
    path = saved(state, tmp_path / "file.safetensors")
    net = load_denoiser(build(), path, cache)
    for name, value in given[path].items():
        assert net.state_dict()[name].data_ptr() == value.data_ptr()
    assert not cache.exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.diffusion_model.", "model."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_prefix_of_every_name_is_taken_away_and_told(state, tmp_path, cache, caplog, prefix, suffix):
    path = saved({prefix + key: value for key, value in state.items()}, tmp_path / f"file.{suffix}")
    with caplog.at_level(logging.INFO, logger="vdq"):
        assert_holds(load_denoiser(build(), path, cache), state)
    assert f"every name begins with {prefix}, which is taken away" in caplog.text


def test_a_prefix_of_some_names_is_refused(state, tmp_path, cache):
    first = next(iter(state))
    path = saved({f"module.{key}" if key == first else key: value for key, value in state.items()}, tmp_path / "a.pth")
    assert f"1 missing ({first}), 1 unexpected (module.{first})" in refusal(path, cache)


@pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["module"], ["model", "ema"], ["state_dict", "model"]])
def test_weights_are_found_where_trainers_put_them(state, tmp_path, cache, keys):
    content = state
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    assert_holds(load_denoiser(build(), saved(content, tmp_path / "file.pth"), cache), state)


def sharded(state, folder):
    """As transformers and diffusers write a large model."""
    names, half = list(state), len(state) // 2
    shards = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    for file, keys in shards.items():
        save_file({key: state[key] for key in keys}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: file for file, keys in shards.items() for key in keys}}))
    return index, sorted(shards)


def test_shards_are_read_through_their_index(state, tmp_path, cache):
    index, shards = sharded(state, tmp_path)
    assert_holds(load_denoiser(build(), index, cache), state)
    assert checkpoint.files(index) == [index, *(tmp_path / name for name in shards)]
    (tmp_path / shards[1]).unlink()
    with pytest.raises(ValueError, match=f"{index.name} names {shards[1]}, which is not beside it"):
        load_denoiser(build(), index, cache)
    index.write_text("[]")
    with pytest.raises(ValueError, match="must be an index of safetensors files"):
        load_denoiser(build(), index, cache)


def test_a_file_of_another_format_than_its_name_is_named(state, tmp_path, cache):
    save_file(state, tmp_path / "a.pth")
    assert "is a safetensors file: name it .safetensors" in refusal(tmp_path / "a.pth", cache)
    torch.save(state, tmp_path / "b.safetensors")
    assert "is one of torch.save: name it .pth" in refusal(tmp_path / "b.safetensors", cache)


def test_conversion_happens_once(state, tmp_path, cache, monkeypatch):
    path = saved({"ema": state}, tmp_path / "file.pth")
    load_denoiser(build(), path, cache)
    (copy,) = cache.glob("weights/*")
    assert copy.suffix == ".safetensors" and len(copy.stem) == 16
    assert set(load_file(copy)) == set(state)
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the .pth was read again"))
    assert_holds(load_denoiser(build(), path, cache), state)
    assert list(cache.glob("weights/*")) == [copy]


def test_another_file_of_the_same_name_is_converted_too(state, tmp_path, cache):
    load_denoiser(build(), saved(state, tmp_path / "file.pth"), cache)
    other = {name: value + 1 for name, value in state.items()}
    assert_holds(load_denoiser(build(), saved(other, tmp_path / "file.pth"), cache), other)


def test_interrupted_conversion_leaves_nothing(state, tmp_path, cache, monkeypatch):
    def interrupted(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    path = saved(state, tmp_path / "file.pth")
    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_denoiser(build(), path, cache)
    assert list((cache / "weights").iterdir()) == []
    monkeypatch.undo()
    assert_holds(load_denoiser(build(), path, cache), state)


def test_damaged_conversion_says_which_file_to_delete(state, tmp_path, cache):
    path = saved(state, tmp_path / "file.pth")
    load_denoiser(build(), path, cache)
    (copy,) = cache.glob("weights/*")
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(ValueError, match="delete it to make it again") as caught:
        load_denoiser(build(), path, cache)
    assert str(caught.value).startswith(f"{copy} (made from model.weights.denoiser={path}")


def test_field_is_named_as_given(tmp_path, cache):
    with pytest.raises(ValueError, match="^other.field=.*missing.pth must be a file that ends in"):
        load_denoiser(build(), tmp_path / "missing.pth", cache, field="other.field")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_missing_and_unexpected_keys_are_counted_and_named(state, tmp_path, cache, suffix):
    for name in list(state)[:4]:
        state[f"{name}.new"] = state.pop(name)
    text = refusal(saved(state, tmp_path / f"file.{suffix}"), cache)
    assert "must hold the 54 tensors of the denoiser" in text
    first = "x_embedder.proj.weight, x_embedder.proj.bias, t_embedder.mlp.0.weight"
    assert f"4 missing ({first})" in text
    assert text.count(".new") == 3 and "4 unexpected (" in text and "wrong" not in text


def test_wrong_shapes_come_with_both(state, tmp_path, cache):
    text = refusal(saved(state, tmp_path / "file.pth"), cache, caption_channels=9)
    assert "2 wrong (y_embedder.y_embedding [5, 8] instead of [5, 9], " in text
    assert "y_embedder.y_proj.fc1.weight [32, 8] instead of [32, 9])" in text
    assert "missing" not in text and "unexpected" not in text


def test_same_file_fits_a_corrected_size_afterwards(state, tmp_path, cache):
    path = saved(state, tmp_path / "file.pth")
    refusal(path, cache, depth=3)
    load_denoiser(build(), path, cache)
    with pytest.raises(ValueError, match=r"^model.weights.denoiser=.* has 19 missing \(blocks.2.scale_shift_table, "):
        load_denoiser(build(depth=3), path, cache)


def test_integers_are_no_weights(state, tmp_path, cache):
    """Quantized weights without their scales would load as nonsense."""
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].to(torch.int8)
    expected = "1 wrong (blocks.0.mlp.fc1.weight [64, 32] of torch.int8 instead of [64, 32])"
    assert expected in refusal(saved(state, tmp_path / "file.pth"), cache)
    assert expected in refusal(saved(state, tmp_path / "file.safetensors"), cache)


def test_values_that_are_no_tensors(state, tmp_path, cache):
    assert "1 unexpected (step)" in refusal(saved({**state, "step": 5}, tmp_path / "a.pth"), cache)
    state["t_block.1.bias"] = 1.0
    assert "1 wrong (t_block.1.bias float instead of [192])" in refusal(saved(state, tmp_path / "b.pth"), cache)
    assert "dictionary of names to tensors, not a list" in refusal(saved([1], tmp_path / "c.pth"), cache)
    assert "dictionary of names to tensors, not a Tensor" in refusal(
        saved({"ema": torch.zeros(2)}, tmp_path / "d.pth"), cache
    )


class Malicious:
    """Unpickled without care, it creates the file of that name."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_code_in_a_pickle_does_not_run(state, tmp_path, cache, options):
    marker = tmp_path / "marker"
    path = saved({**state, "pos_embed": Malicious(marker)}, tmp_path / "file.pth", **options)
    text = refusal(path, cache)
    assert "nothing but tensors, and no code is run from it" in text and not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is as bad as it should be


@pytest.mark.parametrize("part", [0, 1, 10, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_half_written_files(state, tmp_path, cache, part, suffix):
    path = saved(state, tmp_path / f"file.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part) if isinstance(part, float) else part])
    kind = "zip file of torch.save" if suffix == "pth" else "safetensors file"
    assert f"must be a whole {kind}" in refusal(path, cache)


def test_files_that_are_no_zip(state, tmp_path, cache):
    path = tmp_path / "file.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "must be a whole zip file of torch.save" in refusal(path, cache)
    assert "must be a whole zip file of torch.save" in refusal(saved(state, path, **LEGACY), cache)
    text = saved(state, path).rename(tmp_path / "file.safetensors")
    assert "is one of torch.save: name it .pth" in refusal(text, cache)


def test_other_endings_and_folders(state, tmp_path, cache):
    (tmp_path / "folder.pth").mkdir()
    for path in (saved(state, tmp_path / "file.bin"), tmp_path / "folder.pth", tmp_path / "missing.safetensors"):
        assert refusal(path, cache).endswith("ends in .safetensors, .safetensors.index.json, .pth or .pt")


@pytest.mark.parametrize("nested", [False, True])
def test_released_layout_gives_upstreams_output(fixtures, tmp_path, cache, nested):
    """Upstream's state dict through a file, and upstream's output for it."""
    folder = fixtures / "opensora"
    described, tensors = (
        json.loads((folder / "stdit_small.json").read_text()),
        load_file(folder / "stdit_small.safetensors"),
    )
    state = {name.removeprefix("sd."): value for name, value in tensors.items() if name.startswith("sd.")}
    assert set(TABLES) < set(state)
    path = saved({"ema": state} if nested else state, tmp_path / "released.pth")
    net = load_denoiser(lambda: STDiT(**described["config"]), path, cache)
    output = net(*(tensors[f"in.{name}"] for name in ("x", "t", "y", "mask")))
    torch.testing.assert_close(output, tensors["out.masked"], atol=2e-5, rtol=0)


WRITE_XL = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file

path, keys = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())["keys"]
tensors = {entry["key"]: torch.zeros(entry["shape"]) for entry in keys}
(save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)
"""
# Reads every weight, so that what is memory-mapped counts too. VmHWM is the peak of resident memory in KiB.
LOAD_XL = """
import json, sys, torch
from pathlib import Path
from vdq.models.checkpoint import load_denoiser
from vdq.models.stdit import STDiT

net = load_denoiser(STDiT, Path(sys.argv[1]), Path(sys.argv[2]))
zero = [name for name, value in net.state_dict().items() if value.dtype == torch.float32 and not value.any()]
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(json.dumps({"zero": zero, "peak": 1024 * peak}))
"""


def python(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loads"), [("xl.pth", 2), ("xl.safetensors", 1)])
def test_released_size_loads_within_memory(fixtures, tmp_path, name, loads):
    """All 548 tensors, 3.04 GB of zeros: one copy in memory, also while a .pth is converted."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    if (free := shutil.disk_usage(tmp_path).free) < 8e9:
        pytest.skip(f"needs 8 GB of disk under {tmp_path}, {free / 1e9:.1f} GB are free")
    layout, path, cache = fixtures / "opensora" / "stdit_xl2_keys.json", tmp_path / name, tmp_path / "cache"
    keys = {entry["key"] for entry in json.loads(layout.read_text())["keys"]} - set(TABLES)
    try:
        python(WRITE_XL, path, layout)
        for _ in range(loads):
            report = json.loads(python(LOAD_XL, path, cache))
            assert len(report["zero"]) == 548 and set(report["zero"]) == keys
            assert report["peak"] < 4.5e9
    finally:
        path.unlink(missing_ok=True)
        shutil.rmtree(cache, ignore_errors=True)
