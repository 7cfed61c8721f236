"""Oracle: the paper's formula written out on torchvision's AlexNet, with the heads that torchmetrics ships."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as torchmetrics_lpips
import torchvision
from torch import Tensor

import vdq.metrics.lpips as lpips_module
from vdq.metrics.lpips import LpipsMetric

HEADS = Path(torchmetrics_lpips.__file__).parent / "lpips_models" / "alex.pth"
RELUS = (1, 4, 7, 9, 11)
SHIFT, SCALE = ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])


@pytest.fixture(scope="module")
def alexnet() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.alexnet(weights=None).features.double().eval()


@pytest.fixture(scope="module")
def weights(alexnet: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random AlexNet as torchvision names its tensors; the classifier, which LPIPS has no use for, is left out."""
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save({f"features.{name}": value.float() for name, value in alexnet.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def metric_of(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> LpipsMetric:
    return LpipsMetric(cache=str(tmp_path_factory.mktemp("cache")), weights=str(weights), frames_per_batch=2)


@pytest.fixture
def metric(metric_of: LpipsMetric) -> LpipsMetric:
    metric_of.reset()
    return metric_of


def video_pairs(height: int = 48, width: int = 40) -> tuple[Tensor, Tensor]:
    """Three reference videos of 5 frames, and copies whose noise grows from video to video."""
    rng = np.random.default_rng(0)
    grid = np.add(*np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    reference = 120 + 80 * np.sin(grid[..., None] / 5 + np.arange(3)) + np.zeros((3, 5, 1, 1, 1))
    noisy = reference + 15 * np.arange(1, 4)[:, None, None, None, None] * rng.standard_normal(reference.shape)
    return tuple(torch.from_numpy(v.clip(0, 255).astype(np.uint8)) for v in (noisy, reference))


def by_hand(alexnet: torch.nn.Module, video: Tensor, reference: Tensor) -> float:
    """Zhang et al., equation 1, averaged over frames: weighted squared differences of channel-normalised features."""
    heads = torch.load(HEADS, map_location="cpu", weights_only=True)
    maps = []
    for frames in (video, reference):
        x = frames.double().permute(0, 3, 1, 2) / 255 * 2 - 1
        x = (x - torch.tensor(SHIFT).double().view(1, 3, 1, 1)) / torch.tensor(SCALE).double().view(1, 3, 1, 1)
        outputs = []
        for number, layer in enumerate(alexnet[: RELUS[-1] + 1]):
            x = layer(x).clone()
            if number in RELUS:
                outputs.append(x / x.square().sum(1, keepdim=True).sqrt())
        maps.append(outputs)
    distance = torch.zeros(len(video), dtype=torch.float64)
    for layer, (a, b) in enumerate(zip(*maps, strict=True)):
        head = heads[f"lin{layer}.model.1.weight"].double().flatten()
        distance += torch.einsum("nchw,c->nhw", (a - b).square(), head).mean(dim=(1, 2))
    return distance.mean().item()


@torch.no_grad()
def test_equals_the_formula(alexnet: torch.nn.Module, metric: LpipsMetric) -> None:
    noisy, reference = video_pairs()
    metric.update(noisy[:2], reference[:2], index=[0, 1])
    metric.update(noisy[2:], reference[2:], index=[2])
    expected = [by_hand(alexnet, video, ref) for video, ref in zip(noisy, reference, strict=True)]
    assert expected[2] > 1.5 * expected[0] > 1e-3, "the videos differ in quality"
    assert metric.per_video() == {"lpips": pytest.approx(expected, rel=1e-5)}
    assert metric.compute() == {"lpips": pytest.approx(np.mean(expected), rel=1e-5)}
    assert [value.higher_is_better for value in metric.values] == [False]


def test_equal_frames_have_distance_0_and_the_smallest_frame_works(metric: LpipsMetric) -> None:
    _, reference = video_pairs(31, 31)
    metric.update(reference, reference)
    assert metric.compute() == {"lpips": 0}


def test_assets_name_the_backbone(metric: LpipsMetric, weights: Path) -> None:
    assert metric.unavailable is None
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert metric.assets == {"LPIPS backbone alexnet.pth": digest}


def test_the_random_stream_is_left_alone(weights: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    LpipsMetric(cache=str(tmp_path), weights=str(weights))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("videos", "reference", "message"),
    [
        (*video_pairs(30, 40), r"frames have size 30x40"),
        (video_pairs()[0][:2], video_pairs()[1], r"videos have shape \(2, 5, 48, 40, 3\)"),
        (video_pairs()[0], video_pairs()[1].float(), "reference has type torch.float32"),
    ],
)
def test_refuses_bad_input(metric: LpipsMetric, videos: Tensor, reference: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric.update(videos, reference)


def test_refuses_bad_weights(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metrics.lpips.weights=.*nowhere.pth must be an existing file"):
        LpipsMetric(cache=str(tmp_path), weights=str(tmp_path / "nowhere.pth"))
    wrong = tmp_path / "wrong.pth"
    state = torch.load(weights, weights_only=True)
    narrow = state | {"features.0.bias": torch.zeros(3)}
    for content in (b"text", torch.zeros(3), {"features.0.weight": torch.zeros(2)}, narrow):
        wrong.write_bytes(content) if isinstance(content, bytes) else torch.save(content, wrong)
        with pytest.raises(ValueError, match="wrong.pth is not torchvision's AlexNet") as raised:
            LpipsMetric(cache=str(tmp_path), weights=str(wrong))
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="frames_per_batch is 0"):
        LpipsMetric(cache=str(tmp_path), weights=str(weights), frames_per_batch=0)


def test_without_weights_it_is_unavailable_and_downloads_nothing(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metric = LpipsMetric(cache=str(tmp_path))
    file = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    assert f"{file} does not exist" in metric.unavailable and "get_state_dict" in metric.unavailable
    assert metric.assets == {}
    with pytest.raises(ValueError, match="does not exist; fetch it"):
        metric.update(*video_pairs())

    file.parent.mkdir()
    file.write_bytes(weights.read_bytes())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"starts with {digest[:8]}, not 7be5be79"):
        LpipsMetric(cache=str(tmp_path))
    monkeypatch.setattr(lpips_module, "SHA256_PREFIX", digest[:8])
    assert LpipsMetric(cache=str(tmp_path)).assets == {"LPIPS backbone alexnet-owt-7be5be79.pth": digest}
