"""What weight sets take, against bytes counted by hand, and which of both is held."""

import pytest
import torch

from tests.flat_layers import layer_quant
from vdq.quant.affine import QParams
from vdq.quant.set_bytes import SetBytes, summary
from vdq.quant.weight_codes import pack_codes


@pytest.mark.parametrize(
    ("sets", "dtype", "bits", "held", "from_weight"),
    [
        (50, torch.bfloat16, 8, False, True),  # Wan: 100 MB of codes, 4 MB of weights
        (2, torch.bfloat16, 8, False, False),  # as much
        (3, torch.bfloat16, 8, False, True),
        (4, torch.float32, 8, False, False),
        (5, torch.float32, 8, False, True),
        (5, torch.float32, 4, False, False),
        (9, torch.float32, 4, False, True),
        (2, torch.float32, 8, True, True),  # the weight is there anyway
    ],
)
def test_the_smaller_is_held(sets, dtype, bits, held, from_weight):
    weight = torch.empty(1000, 2100, dtype=dtype, device="meta")
    size = SetBytes.of(weight, sets, bits, held=held)
    assert size.codes == sets * 2_100_000 * bits / 8
    assert size.weight == (0 if held else 2_100_000 * {torch.float32: 4, torch.bfloat16: 2}[dtype])
    assert size.from_weight == from_weight


def test_codes_of_small_layers_are_held_whatever_they_take():
    small, large = (torch.empty(100, columns, dtype=torch.bfloat16, device="meta") for columns in (2000, 2001))
    assert not SetBytes.of(small, 20, 8).from_weight and SetBytes.of(large, 20, 8).from_weight


def test_codes_that_do_not_follow_from_the_weight_are_no_choice():
    weight, steps = torch.randn(3, 4), torch.zeros(2, dtype=torch.long)
    grid, act = QParams(torch.ones(1, 3, 1), torch.zeros(1, 3, 1)), QParams(torch.ones(1), torch.zeros(1))
    numbers = {"weight": grid, "weight_range": steps, "act": act, "act_range": steps}
    assert SetBytes.stored(weight, layer_quant(**numbers, weight_bits=4)).codes == 6
    codes = pack_codes([torch.ones(3, 4)], bits=8)
    assert SetBytes.stored(weight, layer_quant(**numbers, codes=codes)) is None


def test_a_summary_says_what_was_chosen_of_how_many_layers_and_why():
    weight = torch.empty(1000, 1000, dtype=torch.bfloat16, device="meta")
    many, few, one = (SetBytes.of(weight, sets, 8) for sets in (50, 2, 1))
    assert summary([(one, False)]) == ""
    assert summary([(many, True), (few, False), (many, True), (one, False)]) == (
        "2 layers hold the original weight, 4.0 MB, and codes when a step needs them: 50 sets would take 100.0 MB; "
        "1 layers hold codes of 2 sets, 2.0 MB (the original weight: 2.0 MB)"
    )
