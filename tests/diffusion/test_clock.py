"""StepClock: range, in-place change, and absence from checkpoints."""

import pytest
import torch
from torch import nn

from vdq.diffusion.clock import CONDITIONAL, UNCONDITIONAL, StepClock


def test_set_changes_the_index_in_place():
    clock = StepClock(20)
    address = clock.index.data_ptr()
    for step in (0, 19, 7):
        clock.set(step)
        assert clock.index.item() == clock.step == step
    assert clock.index.data_ptr() == address
    assert clock.index.dim() == 0 and clock.index.dtype == torch.long


@pytest.mark.parametrize("step", [-1, 20, 1000])
def test_steps_out_of_range(step):
    clock = StepClock(20)
    clock.set(7)
    with pytest.raises(ValueError, match=f"step={step} must be in 0..19"):
        clock.set(step)
    assert clock.index.item() == clock.step == 7


def test_the_branch_is_that_of_the_last_call():
    clock = StepClock(4)
    assert clock.branch is None
    for branch in (CONDITIONAL, UNCONDITIONAL, None):
        clock.set(1, branch)
        assert clock.branch == branch
    with pytest.raises(ValueError, match="branch=null must be conditional, unconditional or None"):
        clock.set(2, "null")
    assert clock.step == 1


def test_the_clock_of_calls_counts_both_branches_of_every_step():
    clock = StepClock(3)
    calls = clock.calls
    assert calls is clock.calls and calls.num_steps == 6 and calls in clock.to(torch.bfloat16).modules()
    seen = []
    for step in range(3):
        for branch in (CONDITIONAL, UNCONDITIONAL):
            clock.set(step, branch)
            assert (clock.step, int(clock.index)) == (step, step)
            seen.append((calls.step, int(calls.index)))
    assert seen == [(call, call) for call in range(6)] and calls.index.dtype == torch.long
    with pytest.raises(ValueError, match="branch=None must be that of the call"):
        clock.set(1)
    assert (clock.step, calls.step) == (2, 5)


def test_num_steps_must_be_positive():
    with pytest.raises(ValueError, match="num_steps=0"):
        StepClock(0)


def test_shared_by_layers_and_not_saved():
    clock = StepClock(4)
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    for layer in layers:
        layer.clock = clock
    layers.to(torch.bfloat16)
    clock.set(3)
    assert [(layer.clock.index.item(), layer.clock.step) for layer in layers] == [(3, 3), (3, 3)]
    assert clock.index.dtype == torch.long
    assert not any("clock" in name for name in layers.state_dict())
