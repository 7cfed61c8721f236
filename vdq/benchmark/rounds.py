"""Times of several contenders, taken in turn in one process, so that a drift of the machine's speed reaches all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

FULL, INTEGER, SIMULATED, PEER, KERNEL = "full precision", "integer", "simulated", "peer", "kernel"
ATTEMPTS = 3  # at a round that something else disturbs
# A timing is of so many calls that it takes at least this long, if fewer than MAX_CALLS are enough.
MIN_SECONDS, MAX_CALLS = 0.05, 50


class Clock(Protocol):
    """The clock of a machine: vdq.benchmark.machine.Machine, or a made-up one in tests."""

    def now(self) -> float:
        """Seconds, after all work that was started has ended."""

    def settle(self) -> None:
        """Lets thread pools of the contender before go to sleep."""

    def watch(self) -> Callable[[], float | None]:
        """Starts to watch; the result gives the share of the CPUs that other programs took since, or None."""


@dataclass(frozen=True, eq=False)
class Contender:
    """Something to time: run(round) does it once. computes: with which arithmetic, in words. baseline: the name of
    another contender that it is also compared with. facts: whatever else its row in the results says; `linears` is the
    number of linears that others than our backends run in integers.
    """

    name: str
    kind: str
    computes: str
    run: Callable[[int], Any]
    baseline: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def integer(self) -> bool:
        return self.kind == INTEGER or bool(self.facts.get("linears"))


@dataclass(frozen=True)
class Round:
    """Seconds a call of every contender, the share of the CPUs that others took meanwhile, and how often the round was
    tried.
    """

    seconds: dict[str, float]
    foreign: float | None
    attempts: int = 1


@dataclass(frozen=True)
class Summary:
    """Median and quartiles, linear between the values as in numpy."""

    median: float
    low: float
    high: float


def measure(
    contenders: Sequence[Contender], *, rounds: int, limit: float, clock: Clock, done: Callable[[], Any]
) -> list[Round]:
    """Times all contenders: one warm-up and `rounds` rounds; `done()` is called after each of them.

    Every round starts with another contender. A round in which others took more than `limit` is done again, at most
    twice; the quietest attempt stays.
    """
    calls = {contender.name: _calls(contender, clock) for contender in contenders}

    def attempt(number: int) -> Round:
        foreign, seconds = clock.watch(), {}
        first = number % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            clock.settle()
            seconds[contender.name] = _seconds(contender, number, calls[contender.name], clock)
        return Round({contender.name: seconds[contender.name] for contender in contenders}, foreign())

    found = []
    for number in range(rounds):
        found.append(_quietest(attempt, number, limit))
        done()
    return found


def used(rounds: Sequence[Round], limit: float) -> list[Round]:
    """The quiet rounds, or all if fewer than half of them are."""
    quiet = [round_ for round_ in rounds if not disturbed(round_, limit)]
    return quiet if 2 * len(quiet) >= len(rounds) else list(rounds)


def disturbed(round_: Round, limit: float) -> bool:
    return round_.foreign is not None and round_.foreign > limit


def summary(values: Sequence[float]) -> Summary:
    low, high = statistics.quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else values * 2
    return Summary(statistics.median(values), low, high)


def ratio(rounds: Sequence[Round], above: str, below: str) -> Summary:
    """The ratio of the times of two contenders, each taken within a round."""
    return summary([round_.seconds[above] / round_.seconds[below] for round_ in rounds])


def _quietest(attempt: Callable[[int], Round], number: int, limit: float) -> Round:
    tried: list[Round] = []
    while len(tried) < ATTEMPTS:
        tried.append(attempt(number))
        if not disturbed(tried[-1], limit):
            break
    best = min(tried, key=lambda round_: round_.foreign or 0)
    return Round(best.seconds, best.foreign, len(tried))


def _calls(contender: Contender, clock: Clock) -> int:
    """Warms up and finds how many calls a timing needs."""
    seconds = _seconds(contender, 0, 1, clock)
    if seconds < 20 * MIN_SECONDS:  # the first may have compiled or allocated
        seconds = _seconds(contender, 0, 1, clock)
    return min(MAX_CALLS, max(1, math.ceil(MIN_SECONDS / max(seconds, 1e-9))))


def _seconds(contender: Contender, number: int, calls: int, clock: Clock) -> float:
    start = clock.now()
    for _ in range(calls):
        contender.run(number)
    return (clock.now() - start) / calls
