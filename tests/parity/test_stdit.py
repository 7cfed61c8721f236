"""STDiT against tensors recorded from the upstream implementation (every stdit_*.json of the fixtures folder)."""

import json

import pytest
import torch

from vdq.models.stdit import STDiT

golden_stdit = pytest.mark.golden("opensora", "stdit")


@pytest.fixture(scope="module")
def model(golden):
    model = STDiT(**golden.config["config"])
    model.load_state_dict(golden.under("sd."))
    return model


def assert_close(actual, expected, golden):
    atol = golden.config["suggested_tolerance"]["max_abs_error_fp32"]
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@golden_stdit
def test_position_tables_equal_upstream(golden):
    """The two computed buffers, before any state dict overwrites them."""
    model = STDiT(**golden.config["config"])
    for name in ("pos_embed", "pos_embed_temporal"):
        torch.testing.assert_close(getattr(model, name), golden.tensors[f"sd.{name}"], atol=1e-7, rtol=0)


@golden_stdit
def test_masked_forward_and_every_recorded_activation(golden, model):
    inputs, recorded = golden.under("in."), golden.under("act.")
    seen = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name in recorded
    ]
    with torch.no_grad():
        output = model(inputs["x"], inputs["t"], inputs["y"], inputs["mask"])
    for hook in hooks:
        hook.remove()
    assert_close(output, golden.tensors["out.masked"], golden)
    assert recorded and seen.keys() == recorded.keys()
    for name, expected in recorded.items():
        rows = len(expected) if name.startswith("t_") else None  # filled up with copies to a fixed number
        assert_close(seen[name][:rows], expected, golden)


@golden_stdit
def test_forward_without_mask_uses_every_token(golden, model):
    inputs = golden.under("in.")
    with torch.no_grad():
        output = model(inputs["x"], inputs["t"], inputs["y"])
    assert_close(output, golden.tensors["out.nomask"], golden)


@golden_stdit
def test_guidance_batch_tiles_the_mask(golden, model):
    """[x; x] with [captions; null captions] and a mask of B rows."""
    x, t, y, mask = (golden.tensors[f"in.{name}"] for name in ("x", "t", "y", "mask"))
    null = model.y_embedder.y_embedding.expand_as(y)
    with torch.no_grad():
        output = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]), mask)
    assert_close(output, golden.tensors["out.cfg_batch"], golden)


def test_state_dict_layout_of_the_released_model(fixtures):
    """Keys, shapes, order and parameter counts of STDiT-XL/2, without allocating it."""
    layout = json.loads((fixtures / "opensora" / "stdit_xl2_keys.json").read_text())
    with torch.device("meta"):
        model = STDiT()
    actual = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    assert actual == [(entry["key"], entry["shape"]) for entry in layout["keys"]]
    parameters = {name for name, _ in model.named_parameters()}
    assert parameters == {entry["key"] for entry in layout["keys"] if entry["kind"] == "parameter"}
    for name, count in layout["per_module_parameters"].items():
        assert sum(p.numel() for p in model.get_submodule(name).parameters()) == count
