"""delta-GBS against a plain loop over the outputs of one video in numpy."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from vdq.diffusion.clock import StepClock
from vdq.quant.bit_switch import BitSwitch

STEPS, LOW, HIGH = 12, 4, 8


def outputs(videos: int = 5) -> Tensor:
    """[steps, videos, ...]: random walks of different speed, faster at both ends."""
    generator = torch.Generator().manual_seed(0)
    speed = torch.tensor([0.3, 0.2, 0.02, 0.02, 0.03, 0.01, 0.02, 0.05, 0.05, 0.05, 0.4, 0.4])
    moves = torch.randn(STEPS, 5, 2, 3, 4, 4, generator=generator) * speed.view(-1, 1, 1, 1, 1, 1)
    moves = moves * torch.tensor([0.2, 0.5, 1.0, 2.0, 4.0]).view(-1, 1, 1, 1, 1)
    return (moves.cumsum(0) + torch.randn(5, 2, 3, 4, 4, generator=generator))[:, :videos]


def run(switch: BitSwitch, estimates: Tensor) -> list[list[int]]:
    """Bits of every step and row of a guided call, asked for before the step's output is known."""
    bits = []
    for step, estimate in enumerate(estimates):
        switch.clock.set(step)
        bits.append(switch.bits(2 * len(estimate)).tolist())
        switch.observe(step, estimate)
    return bits


def numpy_schedule(estimates: np.ndarray, delta: float) -> list[int]:
    """One video [steps, ...], eq. 11 of the paper."""
    schedule, accumulated = [HIGH], 0.0
    for step in range(1, len(estimates)):
        if step > 1:
            now, before = estimates[step - 1], estimates[step - 2]
            accumulated += np.abs(now - before).sum() / np.abs(before).sum()
        schedule.append(HIGH if accumulated >= delta else LOW)
        if accumulated >= delta:
            accumulated = 0.0
    return schedule


def switch(delta: float) -> BitSwitch:
    return BitSwitch(StepClock(STEPS), low=LOW, high=HIGH, delta=delta)


@pytest.mark.parametrize("delta", [0.02, 0.09, 0.3])
def test_every_video_follows_its_own_change(delta):
    estimates = outputs()
    bits = np.array(run(watched := switch(delta), estimates))  # [steps, rows]
    expected = np.stack([numpy_schedule(video, delta) for video in estimates.double().numpy().swapaxes(0, 1)], 1)
    np.testing.assert_array_equal(bits, np.concatenate([expected, expected], 1))  # both halves alike
    assert len({tuple(video) for video in expected.T}) > 2 and {LOW, HIGH} == set(expected.flat)
    assert [record["act_bits"] for record in watched.records()] == expected.T.tolist()


def test_a_video_does_not_depend_on_its_batch():
    together, again = switch(0.09), switch(0.09)
    run(together, outputs())
    for batch in (outputs()[:, 3:], outputs()[:, 2:3]):  # one after another
        run(again, batch)
    assert again.records() == together.records()[2:3]


def test_changes_are_recorded():
    estimates = outputs()
    run(watched := switch(0.09), estimates)
    x = estimates.double().numpy().reshape(STEPS, 5, -1)
    change = np.abs(x[1:] - x[:-1]).sum(2) / np.abs(x[:-1]).sum(2)
    recorded = np.array([record["change"] for record in watched.records()])
    np.testing.assert_allclose(recorded[:, 1:], change.T, rtol=1e-6)
    assert (recorded[:, 0] == 0).all()


@pytest.mark.parametrize(("delta", "low_steps"), [(0.0, 0), (float("inf"), STEPS - 1)])
def test_limits_of_delta(delta, low_steps):
    bits = run(switch(delta), outputs())
    assert set(bits[0]) == {HIGH}
    assert sum(row[0] == LOW for row in bits) == low_steps


def test_output_of_zero_is_no_change_and_no_error():
    bits = run(switch(0.09), torch.zeros(STEPS, 2, 3))
    assert all(row == [LOW] * 4 for row in bits[1:])


def test_another_variant_when_the_bits_of_any_video_change():
    watched, seen = switch(0.09), {}
    for step, estimate in enumerate(outputs()):
        watched.clock.set(step)
        seen.setdefault(watched.variant, set()).add(tuple(watched.bits(5).tolist()))
        watched.observe(step, estimate)
    assert len(seen) > 2 and all(len(bits) == 1 for bits in seen.values())


def test_copies_go_their_own_way():
    watched = switch(0.09)
    run(watched, outputs())
    twin = copy.deepcopy(watched)
    run(twin, outputs(2))
    assert len(watched.records()) == 5 and len(twin.records()) == 2 and twin.clock is not watched.clock


def test_what_was_not_told_is_refused():
    untold = switch(0.09)
    assert untold.bits(3).tolist() == [HIGH] * 3
    untold.clock.set(2)
    for ask in (lambda: untold.bits(2), lambda: untold.variant, lambda: untold.observe(2, outputs()[2])):
        with pytest.raises(ValueError, match="at step 2 must be told the estimates of all steps before it"):
            ask()
    told = switch(0.09)
    told.observe(0, outputs()[0])
    told.clock.set(1)
    with pytest.raises(ValueError, match="got 7 rows, must be a multiple of the 5 videos"):
        told.bits(7)


@pytest.mark.parametrize("delta", [-0.1, float("nan")])
def test_wrong_delta_is_refused(delta):
    with pytest.raises(ValueError, match="delta=.* must be a number of at least 0"):
        switch(delta)
