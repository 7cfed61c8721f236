"""The testbed's Fréchet distances: features by the network's own layers, clips that are rendered."""

import numpy as np
import pytest
import torch

from vdq.metrics.fvd import FvdFp16Metric, FvdMetric
from vdq.shapes.dover import dover
from vdq.shapes.fvd import ShapesClips, ShapesDetector
from vdq.shapes.scenes import split

CLIPS = ShapesClips(12)
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # of ImageNet, 0..255


@pytest.fixture(scope="module")
def detector() -> ShapesDetector:
    return ShapesDetector()


def stack(*indices: int) -> torch.Tensor:
    return torch.stack([CLIPS[index] for index in indices])


def test_features_are_those_of_the_whole_normalised_video(detector):
    videos = stack(0, 1)
    view = torch.from_numpy((videos.numpy() - MEAN) / STD).float().permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        expected = dover().technical_backbone(view).flatten(2).mean(2)
    torch.testing.assert_close(detector.features(videos), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (2, detector.width) == (2, 96)


def test_motion_counts(detector):
    video = stack(next(i for i, scene in enumerate(CLIPS.scenes) if scene.motion in ("left", "right")))
    a, b = detector.features(video), detector.features(video.flip(1))
    assert float((a - b).norm() / a.norm()) > 1e-3


def test_equal_sets_have_no_distance_and_noise_has_one(detector):
    videos = stack(*range(8))
    noise = torch.randint(-40, 41, videos.shape, generator=torch.Generator().manual_seed(0))
    values = []
    for amount in (0, 1, 2):
        metric = FvdFp16Metric(detector=detector, label="shapes")
        metric.update((videos + amount * noise).clamp(0, 255).to(torch.uint8), videos)
        values.append(metric.compute()["fvd_fp16_shapes"])
    assert values[0] == pytest.approx(0, abs=1e-4 * values[1]) and values[0] < values[1] < values[2]


def test_distance_from_rendered_clips_has_its_label_and_assets(detector, tmp_path):
    metric = FvdMetric(detector=detector, real=CLIPS, cache=str(tmp_path), label="shapes")
    metric.update(stack(*range(12)))
    (key,) = metric.compute()
    assert key == "fvd_shapes" and metric.compute()[key] == pytest.approx(0, abs=1e-3)
    assert metric.assets == {detector.name: detector.sha256, CLIPS.name: CLIPS.signature}


def test_other_sizes_are_refused(detector):
    with pytest.raises(ValueError, match="videos are 12x64x64; .* takes 16x64x64 only"):
        detector.features(stack(0)[:, :12])
    assert FvdFp16Metric(detector=detector).refusal(16, 64, 32) and not detector.refusal(16, 64, 64)


def test_clips_are_the_same_every_time_and_no_evaluation_scene():
    again = ShapesClips(12)
    assert torch.equal(again[3], CLIPS[3]) and again.signature == CLIPS.signature
    assert ShapesClips(12, seed=1).signature != CLIPS.signature
    assert not set(ShapesClips().scenes) & set(split()["evaluation"])
    with pytest.raises(ValueError, match="num_clips=1 must be in 2.."):
        ShapesClips(1)
