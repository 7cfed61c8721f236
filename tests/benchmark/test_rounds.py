"""Timing in turns, with a made-up clock; numpy is the oracle of the statistics."""

import numpy as np
import pytest

from vdq.benchmark.rounds import FULL, INTEGER, Contender, Round, measure, ratio, summary, used

LIMIT = 0.1


class FakeClock:
    """Stands still unless a contender runs. `shares` are what others take in the rounds to come."""

    def __init__(self, shares=()):
        self.time, self.shares, self.ran = 0.0, list(shares), []

    def now(self):
        return self.time

    def settle(self):
        self.ran.append("settle")

    def watch(self):
        return lambda: self.shares.pop(0) if self.shares else 0.0

    def contender(self, name, seconds):
        """Takes the next of `seconds` at every call, the last for ever."""
        left = list(seconds)

        def run(round_):
            self.ran.append((name, round_))
            self.time += left.pop(0) if len(left) > 1 else left[0]

        return Contender(name, FULL if name == "a" else INTEGER, "", run)


def test_contenders_take_turns_and_everyone_starts():
    clock, done = FakeClock(), []
    contenders = [clock.contender(name, [1.0]) for name in "abc"]
    rounds = measure(contenders, rounds=4, limit=LIMIT, clock=clock, done=lambda: done.append(1))
    assert len(rounds) == len(done) == 4
    turns = [entry for entry in clock.ran if entry != "settle"][3:]  # after the warm-up
    assert "".join(name for name, _ in turns) == "abc" + "bca" + "cab" + "abc"
    assert [number for _, number in turns] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert clock.ran.count("settle") == 12 and list(rounds[1].seconds) == ["a", "b", "c"]


def test_short_calls_are_repeated_and_long_ones_are_not():
    clock = FakeClock()
    contenders = [clock.contender("a", [3.0, 0.02]), clock.contender("b", [0.02]), clock.contender("c", [1e-6])]
    rounds = measure(contenders, rounds=1, limit=LIMIT, clock=clock, done=lambda: None)
    counts = {name: [entry[0] for entry in clock.ran].count(name) for name in "abc"}
    # A long first call may be compilation, but is not repeated to find out; 0.05 s are three calls of 0.02 s.
    assert counts == {"a": 1 + 1, "b": 2 + 3, "c": 2 + 50}
    assert rounds[0].seconds == pytest.approx({"a": 0.02, "b": 0.02, "c": 1e-6})


def test_ratios_are_taken_within_a_round_and_summarized_as_numpy_does():
    rng = np.random.default_rng(0)
    drift, fast = rng.uniform(1, 3, 9), rng.uniform(0.3, 0.5, 9)
    rounds = [Round({"a": d, "b": d * f}, 0.0) for d, f in zip(drift, fast, strict=True)]
    found = ratio(rounds, "a", "b")
    assert [found.low, found.median, found.high] == pytest.approx(np.percentile(1 / fast, [25, 50, 75]))
    assert summary([2.0]).median == summary([2.0]).low == summary([2.0]).high == 2.0


def test_disturbed_rounds_are_tried_again():
    clock = FakeClock([0.5, 0.0, 0.02, 0.4, 0.2, 0.3])
    contenders = [clock.contender("a", [9, 1, 2, 3, 4, 5, 6])]
    rounds = measure(contenders, rounds=3, limit=LIMIT, clock=clock, done=lambda: None)
    # Quiet at the second attempt, at the first, and never: then the quietest of three stays.
    assert [(round_.foreign, round_.attempts) for round_ in rounds] == [(0.0, 2), (0.02, 1), (0.2, 3)]
    assert [round_.seconds["a"] for round_ in rounds] == [2, 3, 5]
    assert used(rounds, LIMIT) == rounds[:2]


def test_rounds_that_are_mostly_disturbed_are_all_used():
    rounds = [Round({"a": 1.0}, share) for share in (0.0, 0.5, 0.5)]
    assert used(rounds, LIMIT) == rounds
    unknown = [Round({"a": 1.0}, None)]
    assert used(unknown, LIMIT) == unknown
