"""Which steps of a layer share their parameters."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vdq.quant.affine import QParams
from vdq.quant.params import LinearParams

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
        return all(np.array_equal(x.numpy(), y.numpy()) for x, y in pairs)

    groups = [{b for b in range(STEPS) if same(a, b)} for a in range(STEPS)]
    return [group for a, group in enumerate(groups) if group not in groups[:a]]


def change(name: str) -> LinearParams:
    """One number of the last range or step differs by the least that fp32 can tell."""
    p = params()
    owner, _, field = name.partition(".")
    tensor = getattr(p, owner) if not field else getattr(getattr(p, owner), field)
    last = tensor.view(-1)[-1:]
    last.copy_(torch.nextafter(last, last + 1))
    return p


def test_ranges_of_equal_values_are_one_variant():
    assert len(set(params().variants())) == 1


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("weight.scale", {4, 5}),
        ("weight.zero_point", {4, 5}),
        ("smoothing", {4, 5}),
        ("act.scale", {5}),
        ("act.zero_point", {5}),
    ],
)
def test_every_parameter_makes_a_variant(name, steps):
    p = change(name)
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
