"""Sizes and operations of STDiT-XL/2 against arithmetic on its dimensions."""

import math

import pytest

from vdq.commands.sizes import beside_references, planned
from vdq.models.stdit_family import example_inputs
from vdq.quant.operations import call_rows, quantized_operations, total
from vdq.quant.report import ModelSize, model_size

C, BLOCKS, STEPS, TOKENS, TEXT = 1152, 28, 20, 16 * 32 * 32, 120


def test_both_references_stand_beside_a_size():
    size = ModelSize(1, 1, 1, 1, 1, full_precision=1, original=24, half=12, elements=1, all_codes=1)
    assert beside_references(size.total, size) == "6 (4.00, 2.00)"


@pytest.mark.slow
def test_xl2_under_static_plus():
    """Of every block, in units of C x C: q, k, v and proj twice, q and proj of cross attention, its keys and values of
    text, fc1 and fc2 of four each.
    """
    experiment, state = planned("static_plus", "w4a8")
    structure = experiment.model.structure
    size, work = (
        model_size(structure, state),
        total(quantized_operations(structure, state, call_rows(structure, example_inputs))),
    )
    assert work.integer_macs == BLOCKS * C**2 * (TOKENS * (10 + 8) + TEXT * 2)
    assert work.float_macs == BLOCKS * 8 * C * (TOKENS * (10 * 2 + 2 * 5) + TEXT * 3)
    assert work.rotation_adds == BLOCKS * 7 * C * (TOKENS * (10 + 1 + 4) + TEXT)
    assert size.weights * 1e6 == BLOCKS * C**2 * (18 + 2) / 2
    assert size.branches * 1e6 == BLOCKS * 2 * 8 * C * (10 * 2 + 3 + 2 * 5)
    shifts, corrections = 2 * (1 + 1) + 1 + 1 + 1 + 1 + 4, 10 + 2 + 4 + 1  # one shift of q, k and v
    steps = 13 * 2 * 8 * STEPS  # the weight and activation range of every step
    assert size.tables * 1e6 == pytest.approx(BLOCKS * (2 * STEPS * C * (shifts + corrections) + steps))
    assert size.original / size.half == 2 and math.isclose(size.half, 1522.6, abs_tol=0.1)
