"""Oracles: the Fréchet distance with scipy's matrix root and with numpy's singular values; a TorchScript detector made
here whose features are written out in numpy.
"""

import hashlib
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

import vdq.metrics.fvd as fvd_module
from vdq.metrics.fvd import FvdFp16Metric, FvdMetric, I3dDetector, frechet_distance, real_features

FRAMES = 12


class FakeI3d(nn.Module):
    """Called as StyleGAN-V's network is; features are sines of mixed means of colours and of products.

    Reversed time and exchanged height and width give other products, a frame's with the next one's right neighbour.
    """

    def __init__(self, width: int = 400) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.register_buffer("mix", torch.from_numpy(3 * rng.standard_normal((6, width)).astype(np.float32)))

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if not (rescale and resize and return_features and x.shape[1] == 3 and x.shape[2] >= 10):
            raise RuntimeError("another call")
        x = x / 255
        neighbours = x[:, :, :-1, :, :-1] * x[:, :, 1:, :, 1:].square()
        pooled = torch.cat([x.mean(dim=[2, 3, 4]), neighbours.mean(dim=[2, 3, 4])], dim=1)
        return torch.sin(pooled @ self.mix)


def by_hand(videos: Tensor) -> np.ndarray:
    """What FakeI3d gives for uint8 [B,T,H,W,3]."""
    mix = 3 * np.random.default_rng(0).standard_normal((6, 400))
    x = videos.numpy() / 255
    neighbours = x[:, :-1, :, :-1] * x[:, 1:, :, 1:] ** 2
    pooled = np.concatenate([x.mean((1, 2, 3)), neighbours.mean((1, 2, 3))], axis=1)
    return np.sin(pooled @ mix)


def distance_with_matrix_root(x: np.ndarray, y: np.ndarray) -> float:
    """Heusel et al. 2017, equation 6."""
    covariances = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root).real


def distance_with_singular_values(x: np.ndarray, y: np.ndarray) -> float:
    """The same without a root: Tr (A'A B'B)^1/2 is the sum of the singular values of A B'; exact when n < d too."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    roots = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * roots


def feature_sets(n: int, m: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features with a falling spectrum, far from the origin; the sets differ in mean, scale, direction."""
    rng = np.random.default_rng(n)
    mix = rng.standard_normal((2, width, width)) * np.exp(-np.arange(width) / (width / 4))[:, None] / width**0.5
    x = rng.standard_normal((n, width)) @ mix[0] + 50
    return x, rng.standard_normal((m, width)) @ (mix[0] + 0.3 * mix[1]) * 1.2 + 50.1


def random_videos(count: int, seed: int = 0, frames: int = FRAMES) -> Tensor:
    """Small videos that differ in colour and brightness course."""
    rng = np.random.default_rng(seed)
    colours = rng.uniform(40, 160, (count, 1, 1, 1, 3)) + 20 * seed
    noise = rng.standard_normal((count, frames, 6, 8, 3)) * rng.uniform(5, 40, (count, 1, 1, 1, 1))
    return torch.from_numpy((colours + noise).clip(0, 255).astype(np.uint8))


class FakeClips:
    """Real clips that count how often they are read."""

    name = "8 fake clips"
    signature = "a" * 64
    num_frames = FRAMES

    def __init__(self) -> None:
        self.videos = random_videos(8, seed=1)
        self.reads = 0

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return self.videos[index]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "i3d.pt"
    save_script(FakeI3d(), path)
    return path


@pytest.fixture(scope="module")
def detector(weights: Path) -> I3dDetector:
    return I3dDetector(str(weights.parent), str(weights))


def save_script(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would rather export, but I3D is published as TorchScript
        torch.jit.script(module).save(str(path))


@pytest.mark.parametrize(("n", "m", "width"), [(60, 80, 12), (300, 256, 100), (8, 10, 30), (40, 300, 100)])
def test_distance_equals_scipy_and_numpy(n: int, m: int, width: int) -> None:
    x, y = feature_sets(n, m, width)
    expected = distance_with_singular_values(x, y)
    assert distance_with_matrix_root(x, y) == pytest.approx(expected, rel=1e-6), "the oracles agree"
    value = frechet_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert value == pytest.approx(expected, rel=1e-6)
    means = ((x.mean(0) - y.mean(0)) ** 2).sum()
    assert 1.1 * means < value, "covariances count as well"


def test_distance_has_its_invariances() -> None:
    x, y = (torch.from_numpy(z) for z in feature_sets(60, 80, 12))
    value = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(x.flip(0), y[torch.randperm(80)]) == pytest.approx(value, rel=1e-9)
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0])
    assert frechet_distance(x @ rotation + 7, y @ rotation + 7) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * value, rel=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(12 * 2**2, rel=1e-9), "only the means differ"
    few = torch.from_numpy(feature_sets(8, 8, 100)[0])
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5) and frechet_distance(few, few) >= 0


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1)])
def test_distance_needs_two_videos(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"{n} and {m} videos; a covariance needs at least 2"):
        frechet_distance(torch.rand(n, 4), torch.rand(m, 4))


def test_detector_gets_float_frames_first_and_asks_for_its_own_resizing(detector: I3dDetector, weights: Path) -> None:
    videos = random_videos(3)
    features = detector.features(videos)
    assert features.dtype == torch.float32 and features.shape == (3, 400)
    np.testing.assert_allclose(features.numpy(), by_hand(videos), atol=1e-5)
    assert detector.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("videos", "message"),
    [(random_videos(2, frames=9), "videos have 9 frames; I3D needs T >= 10"), (random_videos(2).float(), "float32")],
)
def test_detector_refuses_other_videos(detector: I3dDetector, videos: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector.features(videos)


def test_detector_refuses_other_files(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.pt" for name in ("text", "tensors", "narrow", "other")}
    files["text"].write_text("no network")
    torch.save({"a": torch.zeros(2)}, files["tensors"])
    save_script(FakeI3d(width=7), files["narrow"])
    save_script(nn.Linear(2, 2), files["other"])
    for name, path in files.items():
        message = r"features of shape \(1, 7\)" if name == "narrow" else f"{name}.pt is not the TorchScript of I3D"
        with pytest.raises(ValueError, match=message) as raised:
            I3dDetector(str(tmp_path), str(path))
        assert "\n" not in str(raised.value) and "metrics.fvd_fp16.detector.weights" in str(raised.value)
    with pytest.raises(ValueError, match="nowhere.pt"):
        I3dDetector(str(tmp_path), str(tmp_path / "nowhere.pt"))


def test_fvd_fp16_is_the_distance_of_the_two_sets(detector: I3dDetector, caplog: pytest.LogCaptureFixture) -> None:
    videos, reference = random_videos(8), random_videos(8, seed=1)
    expected = distance_with_singular_values(by_hand(videos), by_hand(reference))
    assert expected > 1
    metric = FvdFp16Metric(detector=detector)
    for batch in ([7, 2, 3], [0, 1], [3, 2], [6, 5, 4]):
        metric.update(videos[batch], reference[batch], index=batch)
    assert metric.compute() == {"fvd_fp16": pytest.approx(expected, rel=1e-5)}
    assert metric.per_video() == {} and metric.per_video_index() == list(range(8))
    assert [value.higher_is_better for value in metric.values] == [False] and metric.assets == {
        detector.name: detector.sha256
    }
    assert "fvd_fp16: 8 videos; with fewer than 256 it is biased" in caplog.text
    assert "different values" not in caplog.text
    metric.update(videos[:1], reference[1:2], index=[4])
    assert metric.compute() == {"fvd_fp16": pytest.approx(expected, rel=1e-5)}
    assert "videos [4] came more than once with different values" in caplog.text


def test_many_videos_give_no_warning(detector: I3dDetector, caplog: pytest.LogCaptureFixture) -> None:
    metric = FvdFp16Metric(detector=detector)
    metric.update(random_videos(256), random_videos(256, seed=1))
    assert metric.compute()["fvd_fp16"] > 0 and not caplog.records


def test_fvd_compares_with_the_real_clips_and_computes_their_features_once(
    detector: I3dDetector, tmp_path: Path
) -> None:
    videos, clips = random_videos(6), FakeClips()
    expected = distance_with_singular_values(by_hand(videos), by_hand(clips.videos))
    for _ in range(2):
        metric = FvdMetric(detector=detector, real=clips, cache=str(tmp_path))
        metric.update(videos)
        assert metric.compute() == {"fvd": pytest.approx(expected, rel=1e-5)}
        assert clips.reads == len(clips)
    assert metric.assets == {detector.name: detector.sha256, clips.name: clips.signature}
    clips.signature = "b" * 64
    real_features(detector, clips, tmp_path)
    assert clips.reads == 2 * len(clips), "other clips, other features"


@pytest.mark.parametrize("damage", ["truncated", "no tensors", "another count", "another name"])
def test_damaged_features_are_computed_again(
    detector: I3dDetector, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    clips = FakeClips()
    features = real_features(detector, clips, tmp_path)
    (path,) = (tmp_path / "fvd").glob("*.safetensors")
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[:-40])
    elif damage == "no tensors":
        path.write_bytes(b"no features")
    else:
        name, count = ("features", 7) if damage == "another count" else ("other", 8)
        fvd_module.save_file({name: features[:count].contiguous()}, path)
    assert torch.equal(real_features(detector, clips, tmp_path), features)
    assert f"{path} is damaged" in caplog.text and clips.reads == 2 * len(clips)
    assert torch.equal(load_file(path)["features"], features)
    assert not [file for file in path.parent.iterdir() if file.suffix == ".part"]


def test_features_of_a_damaged_network_are_refused_and_not_kept(
    detector: I3dDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "features", lambda videos: torch.full((len(videos), 400), torch.nan))
    with pytest.raises(
        ValueError, match="the set of features of 8 fake clips has NaN or infinite values; the weights of I3D"
    ):
        real_features(detector, FakeClips(), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_refuses_bad_input(detector: I3dDetector, tmp_path: Path) -> None:
    fvd = FvdMetric(detector=detector, real=FakeClips(), cache=str(tmp_path))
    with pytest.raises(ValueError, match="videos have 16 frames; only the real clips' 12"):
        fvd.update(random_videos(2, frames=16))
    with pytest.raises(ValueError, match="each of the 2 videos"):
        fvd.update(random_videos(2), index=[0])
    with pytest.raises(ValueError, match=r"only that of the reference \(2, 12, 6, 8, 3\)"):
        FvdFp16Metric(detector=detector).update(random_videos(3), random_videos(2))
    fvd.update(random_videos(1))
    with pytest.raises(ValueError, match="1 and 8 videos"):
        fvd.compute()
    fvd.reset()
    with pytest.raises(ValueError, match="FvdMetric has no value"):
        fvd.per_video_index()


BATCHES = {"repeats": [[[0, 2], [3]], [[1], [3]]], "one process has no video": [[[3, 0], [1, 2]], []]}


def worker(rank: int, port: int, folder: Path, weights: Path) -> None:
    """One process: its own batches in, everybody's value out."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    detector, videos, reference = I3dDetector(str(folder), str(weights)), random_videos(4), random_videos(4, seed=1)
    results = {}
    for name, batches in BATCHES.items():
        fp16 = FvdFp16Metric(detector=detector)
        fvd = FvdMetric(detector=detector, real=FakeClips(), cache=str(folder))
        for batch in batches[rank]:
            fp16.update(videos[batch], reference[batch], index=batch)
            fvd.update(videos[batch], index=batch)
        results[name] = [fp16.compute() | fvd.compute(), fp16.per_video(), fvd.per_video_index()]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(weights: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, args=(port, tmp_path, weights), nprocs=2)
    videos = by_hand(random_videos(4))
    reals = {"fvd_fp16": by_hand(random_videos(4, seed=1)), "fvd": by_hand(FakeClips().videos)}
    expected = {key: distance_with_singular_values(videos, real) for key, real in reals.items()}
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(results) == set(BATCHES)
        for name, (values, per_video, index) in results.items():
            assert values == {key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}, name
            assert per_video == {} and index == [0, 1, 2, 3], name
