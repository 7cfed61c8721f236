"""Oracles: scikit-image for PSNR, torchmetrics for SSIM (same Gaussian window), numpy for latents."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vdq.metrics.fidelity import FidelityMetric, LatentMetric


def video_pairs(count: int = 3, height: int = 24, width: int = 32) -> tuple[Tensor, Tensor]:
    """Smooth reference videos and noisy copies, the noise growing from video to video and frame to frame."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).sum(0)
    reference = 120 + 80 * np.sin(grid[..., None] / 5 + np.arange(3)) + np.zeros((count, 4, 1, 1, 1))
    strength = 2.0 + 5 * np.arange(count)[:, None, None, None, None] + np.arange(4)[:, None, None, None]
    noisy = reference + strength * rng.standard_normal(reference.shape)
    return tuple(torch.from_numpy(np.clip(v, 0, 255).astype(np.uint8)) for v in (noisy, reference))


def ssim_of(frame: Tensor, reference: Tensor) -> float:
    """torchmetrics pads the frame; only windows that lie in it count."""
    images = (image.movedim(-1, 0)[None].double() for image in (frame, reference))
    _, full = structural_similarity_index_measure(*images, data_range=255.0, return_full_image=True)
    return full[..., 5:-5, 5:-5].mean().item()


def test_equals_scikit_image_and_torchmetrics() -> None:
    noisy, reference = video_pairs()
    metric = FidelityMetric()
    metric.update(noisy, reference)
    psnr, ssim = np.zeros((3, 4)), np.zeros((3, 4))
    for position in np.ndindex(3, 4):
        a, b = noisy[position].numpy(), reference[position].numpy()
        psnr[position] = peak_signal_noise_ratio(b, a, data_range=255)
        ssim[position] = ssim_of(noisy[position], reference[position])
    assert psnr.std() > 1 and ssim.std() > 0.05, "the frames differ in quality"
    assert metric.per_video()["psnr"] == pytest.approx(psnr.mean(1), rel=1e-6)
    assert metric.per_video()["ssim"] == pytest.approx(ssim.mean(1), rel=1e-6)
    assert metric.compute() == {
        "psnr": pytest.approx(psnr.mean(), rel=1e-6),
        "ssim": pytest.approx(ssim.mean(), rel=1e-6),
    }
    assert all(value.higher_is_better for value in metric.values) and metric.assets == {}


def test_equal_frames_count_100_db() -> None:
    _, reference = video_pairs(count=1)
    one_frame_differs = reference.clone()
    one_frame_differs[0, 0] ^= 1
    metric = FidelityMetric()
    metric.update(reference, reference, index=[0])
    metric.update(one_frame_differs, reference, index=[1])
    off_by_one = 20 * np.log10(255)
    assert metric.per_video()["psnr"] == pytest.approx([100, (3 * 100 + off_by_one) / 4])
    assert metric.per_video()["ssim"][0] == pytest.approx(1, abs=1e-12)


def test_black_against_white_is_finite() -> None:
    black = torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8)
    metric = FidelityMetric()
    metric.update(black, black + 255)
    assert metric.compute() == {"psnr": pytest.approx(0, abs=1e-5), "ssim": pytest.approx(0, abs=1e-3)}


@pytest.mark.parametrize(
    ("videos", "reference", "message"),
    [
        (*video_pairs(height=10), "size 10x32"),
        (video_pairs()[0], video_pairs(count=2)[1], r"\(2, 4, 24, 32, 3\)"),
        (video_pairs()[0], video_pairs()[1].float(), "reference has type torch.float32"),
        (video_pairs()[0].numpy(), video_pairs()[1], "videos has type uint8"),
    ],
)
def test_refuses_bad_input(videos: Tensor, reference: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FidelityMetric().update(videos, reference)


def test_latent_distance_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    latents, reference = rng.standard_normal((2, 3, 4, 2, 5, 5)).astype(np.float32)
    metric = LatentMetric()
    metric.update(torch.from_numpy(latents), torch.from_numpy(reference))
    expected = [np.linalg.norm(x - r) / np.linalg.norm(r) for x, r in zip(latents, reference, strict=True)]
    assert metric.per_video() == {"latent_rel_l2": pytest.approx(expected, rel=1e-6)}
    assert metric.compute() == {"latent_rel_l2": pytest.approx(np.mean(expected), rel=1e-6)}
    assert [value.higher_is_better for value in metric.values] == [False]


def test_latent_distance_refuses_bad_input() -> None:
    latents = torch.ones(2, 4, 1, 2, 2)
    with pytest.raises(ValueError, match="norm 0"):
        LatentMetric().update(latents, latents * torch.tensor([1, 0])[:, None, None, None, None])
    with pytest.raises(ValueError, match="only that of the reference"):
        LatentMetric().update(latents, latents[:, :3])
