"""What is decided for a layer: which steps share it, what may not be, and how it is stored."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.flat_layers import changed, flat, layer_quant
from vdq.errors import UserError
from vdq.quant.affine import QParams
from vdq.quant.codebook import Codebook
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.parts import AffineWeights, Part, Rotation
from vdq.quant.state import KIND, QuantState

STEPS, OUT, IN = 6, 3, 4


def params() -> LayerQuant:
    """Three weight ranges and six activation ranges, equal in value."""
    return layer_quant(
        weight_bits=8,
        act_bits=8,
        weight=QParams(torch.full((3, OUT, 1), 0.5), torch.full((3, OUT, 1), 2.0)),
        weight_range=torch.tensor([0, 0, 1, 1, 2, 2]),
        act=QParams(torch.full((STEPS,), 0.1), torch.full((STEPS,), 7.0)),
        act_range=torch.arange(STEPS),
        smoothing=torch.ones(3, IN),
    )


def partition(numbers: list[int]) -> list[set[int]]:
    """Steps with the same number, by their first step."""
    return [{i for i, other in enumerate(numbers) if other == n} for i, n in enumerate(numbers) if n not in numbers[:i]]


def expected(quant: LayerQuant) -> list[set[int]]:
    """The same from the values themselves, pair by pair."""
    p = flat(quant)

    def same(a: int, b: int) -> bool:
        ranges = p.weight_range.tolist()
        pairs = [(t[ranges[a]], t[ranges[b]]) for t in (p.weight.scale, p.weight.zero_point)]
        if p.smoothing is not None:
            pairs.append((p.smoothing[ranges[a]], p.smoothing[ranges[b]]))
        if p.act is not None:
            pairs += [(t[p.act_range[a]], t[p.act_range[b]]) for t in p.act]
        if p.codes is not None:
            pairs.append((p.codes[ranges[a]], p.codes[ranges[b]]))
        table_ranges = ranges if p.act_range is None else p.act_range.tolist()
        tables = (t for t in (p.shift, p.correction) if t is not None)
        pairs += [(t[table_ranges[a]], t[table_ranges[b]]) for t in tables]
        pairs += [(t[a], t[b]) for t in [p.step_bits] if t is not None]
        return all(np.array_equal(x.numpy(), y.numpy()) for x, y in pairs)

    groups = [{b for b in range(STEPS) if same(a, b)} for a in range(STEPS)]
    return [group for a, group in enumerate(groups) if group not in groups[:a]]


def full() -> LayerQuant:
    """With every table that a layer can have, equal in value too, and two groups of tokens."""
    return changed(
        params(),
        act=QParams(torch.full((STEPS, 2), 0.1), torch.full((STEPS, 2), 7.0)),
        codes=torch.full((3, OUT * IN), 9, dtype=torch.uint8),
        shift=torch.ones(STEPS, IN),
        correction=torch.ones(STEPS, OUT),
        step_bits=torch.full((STEPS,), 8),
        act_group=torch.tensor([0, 1, 1]),
    )


def change(quant: LayerQuant, name: str) -> LayerQuant:
    """One number of the last range or step differs by the least that its type can tell."""
    owner, _, field = name.partition(".")
    tensor = getattr(flat(quant), owner)
    last = (getattr(tensor, field) if field else tensor).view(-1)[-1:]
    last.copy_(torch.nextafter(last, last + 1) if last.is_floating_point() else last - 1)
    return quant


@pytest.mark.parametrize("make", [params, full])
def test_ranges_of_equal_values_are_one_variant(make):
    assert len(set(make().variants())) == 1


OF_RANGES = [(params, "weight.scale"), (params, "weight.zero_point"), (params, "smoothing"), (full, "codes")]
OF_STEPS = [
    *((make, name) for make in (params, full) for name in ("act.scale", "act.zero_point")),
    *((full, name) for name in ("shift", "correction", "step_bits")),
]


@pytest.mark.parametrize(
    ("make", "name", "steps"),
    [*((*which, {4, 5}) for which in OF_RANGES), *((*which, {5}) for which in OF_STEPS)],
)
def test_every_parameter_makes_a_variant(make, name, steps):
    p = change(make(), name)
    assert partition(p.variants()) == expected(p) == [set(range(STEPS)) - steps, steps]


def test_equal_ranges_need_not_follow_each_other():
    p = changed(params(), act=QParams(torch.tensor([1.0, 2, 1, 3, 2, 1]), torch.zeros(STEPS)))
    assert partition(p.variants()) == expected(p) == [{0, 2, 5}, {1, 4}, {3}]


def test_dynamic_layers_change_with_their_weights_only():
    p = changed(params(), act=None, act_range=None)
    assert len(set(p.variants())) == 1
    flat(p).smoothing[1] = 2
    assert partition(p.variants()) == expected(p) == [{0, 1, 4, 5}, {2, 3}]
    bare = changed(p, smoothing=None, weight_range=torch.zeros(STEPS, dtype=torch.long))
    assert len(set(bare.variants())) == 1


def test_tables_of_dynamic_layers_may_follow_the_weights():
    p = changed(full(), act=None, act_range=None, act_group=None)
    flat(p).shift[2] = 5
    assert partition(p.variants()) == expected(p) == [{0, 1, 2, 3}, {4, 5}]


@pytest.mark.parametrize("make", [params, full])
def test_description_and_tensors_are_the_whole(make):
    quant = changed(make(), rotation=2)
    again = LayerQuant.restored(json.loads(json.dumps(quant.description())), quant.tensors())
    assert [type(part) for part in again.parts] == [type(part) for part in quant.parts]
    for ours, theirs in zip(quant.parts, again.parts, strict=True):
        assert all(getattr(ours, field.name) is getattr(theirs, field.name) for field in fields(ours))


def test_codebooks_are_stored():
    quant = changed(params(), act=None, codebook=Codebook(torch.arange(3.0), torch.tensor([0.5, 1.5])))
    again = LayerQuant.restored(quant.description(), quant.tensors())
    assert again.act.static and again.act.kind == "codebook"
    found = again.act(torch.tensor([-1.0, 0.5, 0.6, 9.0]), torch.tensor(0))
    assert torch.equal(found, torch.tensor([0.0, 0.0, 1.0, 2.0]))


def test_a_kind_that_nothing_defines_is_refused():
    with pytest.raises(
        UserError, match="^kind=wavelet is no known part of a layer, import what defines it; known: aff"
    ):
        LayerQuant.restored([{"kind": "wavelet"}], {})


def test_a_kind_is_defined_once():
    with pytest.raises(TypeError, match="kind=rotation of Other is taken by vdq.quant.parts.inputs.Rotation"):

        class Other(Part):
            kind = "rotation"


def test_codes_stay_on_the_host():
    moved = full().to("meta")
    assert moved.weight.codes.device.type == "cpu" and flat(moved).shift.is_meta and moved.act.scale.is_meta
    assert moved.act.steps is moved.part("shift").steps  # what parts share stays shared


def test_a_tensor_of_several_layers_is_stored_once(tmp_path):
    p, table = full(), torch.arange(float(STEPS * IN)).view(STEPS, IN)
    layers = {name: changed(p, shift=shift) for name, shift in (("q", table), ("k", table), ("v", table + 1))}
    QuantState(layers, STEPS).save(tmp_path / "state")
    with safe_open(tmp_path / "state", framework="np") as file:
        assert {name for name in file.keys() if name.endswith("shift.values")} == {"q.shift.values", "v.shift.values"}
    loaded = {name: flat(quant).shift for name, quant in QuantState.load(tmp_path / "state").layers.items()}
    assert loaded["k"] is loaded["q"] and torch.equal(loaded["k"], table)
    assert torch.equal(loaded["v"], table + 1)


def test_files_of_before_are_refused(tmp_path):
    """Written when a layer was one flat set of parameters, without a layout."""
    path = tmp_path / "state.safetensors"
    header = {"layers": {"fc": {"weight_bits": 8}}, "num_steps": STEPS, "report": [], "metadata": {}}
    save_file({"fc.weight_scale": torch.ones(1)}, path, metadata={"kind": KIND, "header": json.dumps(header)})
    with pytest.raises(UserError, match="has layout 1 of vdq.quant_state, this program reads 2; make it again$"):
        QuantState.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_bits": torch.full((STEPS,), 6)}, "bits=8 must be the largest of step_bits, 6"),
        ({"step_bits": torch.full((STEPS,), 9)}, "bits=8 must be the largest of step_bits, 9"),
        ({"shift": torch.ones(3, IN)}, r"shift.values has 3 rows, must have one for each of 0\.\.5"),
        ({"correction": torch.ones(5, OUT)}, r"correction.values has 5 rows, must have one for each of 0\.\.5"),
        ({"act_group": torch.tensor([0, 2])}, r"group has values outside 0\.\.1, the groups of scale"),
        ({"act_group": torch.tensor([-1])}, r"group has values outside 0\.\.1, the groups of scale"),
        ({"act_range": torch.arange(4) % 2}, "has 4 steps, the weight has 6"),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(full(), **changes)


def test_parts_that_do_not_fit_each_other_are_refused():
    quant = params()
    with pytest.raises(ValueError, match="a layer has two parts of one kind: rotation, rotation, affine, static"):
        replace(quant, inputs=(Rotation(block=2), Rotation(block=4)))
    with pytest.raises(ValueError, match="smoothing has other steps than the weight"):
        replace(quant, weight=replace(quant.weight, steps=torch.tensor([0, 1, 1, 1, 2, 2])))
    with pytest.raises(ValueError, match="smoothing comes before the rotation, which a folded layer leaves to the one"):
        changed(quant, rotation=2, folded=True)
    with pytest.raises(ValueError, match=r"affine.scale has 3 rows, must have one for each of 0\.\.3"):
        AffineWeights(bits=8, scale=torch.ones(3, 1, 1), zero_point=torch.ones(3, 1, 1), steps=torch.arange(4))
