"""The parameters of a layer: which steps share them, what they may not be, and how they are stored."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vdq.quant.affine import QParams
from vdq.quant.params import Codebook, LinearParams
from vdq.quant.state import KIND, QuantState

STEPS, OUT, IN = 6, 3, 4


def params() -> LinearParams:
    """Three weight ranges and six activation ranges, equal in value."""
    return LinearParams(
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


def expected(p: LinearParams) -> list[set[int]]:
    """The same from the values themselves, pair by pair."""

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


def full() -> LinearParams:
    """With every table that a layer can have, equal in value too, and two groups of tokens."""
    return replace(
        params(),
        act=QParams(torch.full((STEPS, 2), 0.1), torch.full((STEPS, 2), 7.0)),
        codes=torch.full((3, OUT * IN), 9, dtype=torch.uint8),
        shift=torch.ones(STEPS, IN),
        correction=torch.ones(STEPS, OUT),
        step_bits=torch.full((STEPS,), 8),
        act_group=torch.tensor([0, 1, 1]),
    )


def change(p: LinearParams, name: str) -> LinearParams:
    """One number of the last range or step differs by the least that its type can tell."""
    owner, _, field = name.partition(".")
    tensor = getattr(p, owner) if not field else getattr(getattr(p, owner), field)
    last = tensor.view(-1)[-1:]
    last.copy_(torch.nextafter(last, last + 1) if last.is_floating_point() else last - 1)
    return p


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
    p = replace(params(), act=QParams(torch.tensor([1.0, 2, 1, 3, 2, 1]), torch.zeros(STEPS)))
    assert partition(p.variants()) == expected(p) == [{0, 2, 5}, {1, 4}, {3}]


def test_dynamic_layers_change_with_their_weights_only():
    p = replace(params(), act=None, act_range=None, act_granularity="per_token")
    assert len(set(p.variants())) == 1
    p.smoothing[1] = 2
    assert partition(p.variants()) == expected(p) == [{0, 1, 4, 5}, {2, 3}]
    bare = replace(p, smoothing=None, weight_range=torch.zeros(STEPS, dtype=torch.long))
    assert len(set(bare.variants())) == 1


def test_tables_of_dynamic_layers_follow_the_weights():
    p = replace(full(), act=None, act_range=None, act_group=None)
    assert p.table_range is p.weight_range
    p.shift[2] = 5
    assert partition(p.variants()) == expected(p) == [{0, 1, 2, 3}, {4, 5}]


@pytest.mark.parametrize("make", [params, full])
def test_tensors_and_scalars_are_the_whole(make):
    p = replace(make(), rotation=2)
    again = LinearParams.from_tensors(p.tensors(), p.scalars())
    for field in fields(LinearParams):
        ours, theirs = getattr(p, field.name), getattr(again, field.name)
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
        assert all(a is b or a == b for a, b in pairs)


def test_codebooks_are_stored():
    p = replace(params(), act=None, codebook=Codebook(torch.arange(3.0), torch.tensor([0.5, 1.5])))
    again = LinearParams.from_tensors(p.tensors(), p.scalars())
    assert p.static and isinstance(again.codebook, Codebook) and again.act is None
    assert torch.equal(again.codebook(torch.tensor([-1.0, 0.5, 0.6, 9.0])), torch.tensor([0.0, 0.0, 1.0, 2.0]))


def test_codes_stay_on_the_host():
    moved = full().to("meta")
    assert moved.codes.device.type == "cpu" and moved.shift.is_meta and moved.act.scale.is_meta


def test_a_tensor_of_several_layers_is_stored_once(tmp_path):
    p, table = full(), torch.arange(float(STEPS * IN)).view(STEPS, IN)
    layers = {name: replace(p, shift=shift) for name, shift in (("q", table), ("k", table), ("v", table + 1))}
    QuantState(layers, STEPS).save(tmp_path / "state")
    with safe_open(tmp_path / "state", framework="np") as file:
        assert {name for name in file.keys() if name.endswith("shift")} == {"q.shift", "v.shift"}
    loaded = QuantState.load(tmp_path / "state").layers
    assert loaded["k"].shift is loaded["q"].shift and torch.equal(loaded["k"].shift, table)
    assert torch.equal(loaded["v"].shift, table + 1)


def test_files_of_before_are_read(tmp_path):
    """Written when parameters had neither rotation nor any of the tables of `full`, and every tensor its own place."""
    p, path = params(), tmp_path / "state.safetensors"
    scalars = {name: value for name, value in p.scalars().items() if name != "rotation"}
    row = {"fqn": "fc", "shape": [OUT, IN], "kind": "static", "weight_bits": 8, "act_bits": 8, "reason": ""}
    header = {"layers": {"fc": scalars}, "num_steps": STEPS, "report": [row], "metadata": {}}
    tensors = {f"fc.{name}": tensor for name, tensor in p.tensors().items()}
    save_file(tensors, path, metadata={"kind": KIND, "header": json.dumps(header)})
    state = QuantState.load(path)
    assert state.layers["fc"].scalars() == p.scalars() and state.report[0].rotation == 0
    assert torch.equal(state.layers["fc"].smoothing, p.smoothing)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook": Codebook(torch.zeros(2), torch.zeros(1))}, "act and codebook are both given"),
        ({"step_bits": torch.full((STEPS,), 6)}, "act_bits=8 must be the largest of step_bits, 6"),
        ({"step_bits": torch.full((STEPS,), 9)}, "act_bits=8 must be the largest of step_bits, 9"),
        ({"shift": torch.ones(3, IN)}, r"shift has 3 rows, must have one for each of the ranges 0\.\.5"),
        ({"correction": torch.ones(5, OUT)}, r"correction has 5 rows, must have one for each of the ranges 0\.\.5"),
        ({"act_group": torch.tensor([0, 2])}, r"act_group has values outside 0\.\.1, the groups of act"),
        ({"act_group": torch.tensor([-1])}, r"act_group has values outside 0\.\.1, the groups of act"),
        ({"act": None}, "act_group needs act, the qparams of its groups"),
    ],
)
def test_parameters_that_do_not_fit_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(full(), **changes)
