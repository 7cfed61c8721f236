"""Partition of the denoising steps into time ranges."""

import numpy as np
import pytest
import torch

from vdq.quant.time_ranges import TimeRanges

# The 20 timesteps of the paper's sampler, ascending (spec/quantization.md 5.1).
TIMESTEPS = [0, 53, 105, 158, 210, 263, 315, 368, 421, 473, 526, 578, 631, 684, 736, 789, 841, 894, 946, 999]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 10, 20])
def test_partition_equals_upstreams_over_timesteps(count):
    upstream = [t * count // 1000 for t in reversed(TIMESTEPS)]  # sampling order: noisiest first
    assert [count - 1 - r for r in upstream] == TimeRanges(20, count).index.tolist()


def test_ranges_hold_the_timesteps_of_the_specification():
    descending = TIMESTEPS[::-1]
    spans = {k: [[descending[s] for s in TimeRanges(20, k).steps(r)] for r in range(k)] for k in (2, 4)}
    assert [(min(s), max(s)) for s in spans[2]] == [(526, 999), (0, 473)]
    assert [(min(s), max(s)) for s in spans[4]] == [(789, 999), (526, 736), (263, 473), (0, 210)]


def test_per_step():
    assert TimeRanges(6, "per_step").index.tolist() == list(range(6))
    assert TimeRanges(6, "per_step").num_ranges == 6


@pytest.mark.parametrize(("steps", "count"), [(50, 4), (50, 10), (13, 4), (7, 5), (20, 1), (20, 20), (3, 2)])
def test_ranges_are_as_equal_as_they_can_be(steps, count):
    """Against numpy's own split: the same sizes, in another order."""
    ranges = TimeRanges(steps, count)
    spans = [list(ranges.steps(number)) for number in range(count)]
    assert sum(spans, []) == list(range(steps))
    assert [number for number, span in enumerate(spans) for _ in span] == ranges.index.tolist()
    assert sorted(map(len, spans)) == sorted(map(len, np.array_split(np.arange(steps), count)))
    assert len(spans[0]) == max(map(len, spans))  # the first is one of the longer ones
    assert [part.tolist() for part in ranges.split(torch.arange(steps))] == spans


def test_longer_ranges_lie_among_the_others():
    assert [len(TimeRanges(50, 4).steps(number)) for number in range(4)] == [13, 12, 13, 12]


@pytest.mark.parametrize("count", [0, -1, 21, 40, 2.0, "all", None])
def test_other_numbers_of_ranges_are_refused(count):
    with pytest.raises(ValueError, match=f"num_time_ranges={count} must be in 1..20, the denoising steps, or per_step"):
        TimeRanges(20, count)
