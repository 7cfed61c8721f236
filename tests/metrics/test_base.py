"""What all metrics share: order, batches, repeats and processes change no value; numpy's mean is the oracle."""

import logging
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from vdq.metrics.fidelity import LatentMetric

DISTANCES = np.array([0.5, 0.25, 4.0, 1.0, 2.0])


def latents(*index: int) -> tuple[Tensor, Tensor]:
    """Latents at the distances DISTANCES[index] from their references, exact in binary."""
    reference = torch.ones(len(index), 4)
    return reference * (1 + torch.tensor(DISTANCES[list(index)]).float()[:, None]), reference


def measured(*batches: tuple[int, ...]) -> LatentMetric:
    metric = LatentMetric()
    for batch in batches:
        metric.update(*latents(*batch), index=batch)
    return metric


@pytest.mark.parametrize(
    "batches", [[(0, 1, 2, 3, 4)], [(0,), (1,), (2,), (3,), (4,)], [(4, 2), (0, 3, 1)], [(1, 4), (0, 2), (3, 1)]]
)
def test_order_batches_and_repeats_change_nothing(batches: list[tuple[int, ...]]) -> None:
    metric = measured(*batches)
    assert metric.per_video() == {"latent_rel_l2": DISTANCES.tolist()}
    assert metric.per_video_index() == [0, 1, 2, 3, 4]
    assert metric.compute() == {"latent_rel_l2": DISTANCES.mean()}


def test_index_may_be_a_tensor_or_start_anywhere() -> None:
    metric = LatentMetric()
    metric.update(*latents(1, 0), index=torch.tensor([8, 7]))
    assert metric.per_video_index() == [7, 8]
    assert metric.per_video() == {"latent_rel_l2": DISTANCES[:2].tolist()}


def test_unnumbered_videos_all_count_in_their_order() -> None:
    metric = LatentMetric()
    metric.update(*latents(2, 0))
    metric.update(*latents(0))
    assert metric.per_video() == {"latent_rel_l2": [4.0, 0.5, 0.5]} and metric.per_video_index() == [-1, -1, -1]


def test_a_repeat_with_another_value_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    metric = measured((0, 1), (1, 2))
    with caplog.at_level(logging.WARNING):
        metric.compute()
        assert not caplog.records
        metric.update(*latents(3), index=[1])
        assert metric.compute() == {"latent_rel_l2": DISTANCES[:3].mean()}
    assert "videos [1] came more than once with different values" in caplog.text


def test_reset_forgets_every_video_and_no_video_has_no_value() -> None:
    metric = measured((0, 1))
    metric.reset()
    metric.update(*latents(2), index=[0])
    assert metric.per_video() == {"latent_rel_l2": [4.0]}
    metric.reset()
    with pytest.raises(ValueError, match="LatentMetric has no value"), pytest.warns(UserWarning, match="before"):
        metric.compute()


@pytest.mark.parametrize("index", [[0], [0, 1, 2], [0, -1]])
def test_refuses_a_bad_index(index: list[int]) -> None:
    with pytest.raises(ValueError, match="each of the 2 videos"):
        LatentMetric().update(*latents(0, 1), index=index)


SCENARIOS = {
    "the sampler repeats a video": [[(0, 2), (3,)], [(1,), (3,)]],
    "one process has no video": [[(3, 0), (1, 2)], []],
}


def worker(rank: int, port: int, folder: Path) -> None:
    """One process: its own batches in, everybody's values out."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results = {}
    for name, batches in SCENARIOS.items():
        metric = measured(*batches[rank])
        values = [metric.compute(), metric.per_video(), metric.per_video_index()]
        if rank == 0:
            metric.update(*latents(4), index=[4])
        results[name] = [*values, metric.per_video_index()]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, args=(port, tmp_path), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(results) == set(SCENARIOS)
        for name, (values, per_video, index, later) in results.items():
            assert values == {"latent_rel_l2": DISTANCES[:4].mean()}, name
            assert per_video == {"latent_rel_l2": DISTANCES[:4].tolist()}, name
            assert index == [0, 1, 2, 3], name
            assert later == [0, 1, 2, 3, 4], "updates go on after a value was read"
