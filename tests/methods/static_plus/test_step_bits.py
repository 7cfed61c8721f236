"""Bits of steps under a budget: the spread against all possible ones, the frozen switch against the live one."""

from itertools import product

import pytest
import torch

from vdq.diffusion.clock import StepClock
from vdq.methods.static_plus.step_bits import frozen_switch, spread_bits, switched_bits
from vdq.quant.bit_switch import BitSwitch


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean", [3, 4, 5])
def test_spread_is_the_best_of_all(mean, seed):
    error = 10 ** (4 * torch.rand(5, generator=torch.Generator().manual_seed(seed)))
    bits = spread_bits(error, mean, low=2, high=6)

    def total(candidate) -> float:
        return float((error.double() * 4.0 ** -torch.tensor(candidate).double()).sum())

    allowed = [c for c in product(range(2, 7), repeat=5) if sum(c) == 5 * mean]
    assert bits.sum() == 5 * mean
    assert total(bits.tolist()) == pytest.approx(min(map(total, allowed)), rel=1e-12)


def test_budget_of_all_bits_leaves_nothing_to_choose():
    for choose in (spread_bits, frozen_switch):
        assert choose(torch.rand(6), 8).tolist() == [8] * 6
        assert choose(torch.rand(6), 16).tolist() == [16] * 6


@pytest.mark.parametrize("delta", [0.0, 0.05, 0.2, 1.0])
def test_switch_is_the_live_one(delta):
    clock, generator = StepClock(9), torch.Generator().manual_seed(3)
    live = BitSwitch(clock, low=4, high=8, delta=delta)
    estimates = torch.randn(1, 6, generator=generator) + 0.03 * torch.randn(9, 1, 6, generator=generator).cumsum(0)
    for step, estimate in enumerate(estimates):
        clock.set(step)
        live.observe(step, estimate)
    (record,) = live.records()
    # record: change of a step against the one before; D before a step holds those of the steps before it
    assert switched_bits(torch.tensor(record["change"]), low=4, high=8, delta=delta).tolist() == record["act_bits"]


@pytest.mark.parametrize("mean", [4, 5, 6, 7])
def test_frozen_switch_uses_the_budget(mean):
    change = torch.tensor([0, 0.013, 0.02, 0.03, 0.05, 0.05, 0.05, 0.06, 0.07, 0.08, 0.1, 0.14, 0.23, 0.97])
    bits = frozen_switch(change, mean)
    assert set(bits.tolist()) <= {mean - 1, 8} and bits[0] == 8
    assert mean - 1 < bits.double().mean() <= mean
    deltas = torch.linspace(1e-6, 2, 20001).tolist()
    all_bits = (switched_bits(change, low=mean - 1, high=8, delta=delta) for delta in deltas)
    assert bits.tolist() == next(b.tolist() for b in all_bits if b.double().mean() <= mean)


def test_budgets_that_are_too_small():
    with pytest.raises(ValueError, match=r"act_bits=1 must be at least 2"):
        spread_bits(torch.rand(4), 1)
    with pytest.raises(ValueError, match=r"act_bits=2 must be at least 3"):
        frozen_switch(torch.rand(4), 2)
    with pytest.raises(ValueError, match=r"act_bits=3 is too small for a first step of 8 bits in 2 steps"):
        frozen_switch(torch.rand(2), 3)
