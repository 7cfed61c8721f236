"""How far a quantized model's output is from the full-precision one of the same prompt and noise.

`FidelityMetric` compares decoded frames (PSNR, SSIM), `LatentMetric` the latents before decoding. Neither says whether
a video is good: the full-precision video is the reference, whatever it shows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vdq.metrics.base import VideoMetric, check_index, check_videos

DATA_RANGE = 255.0
PSNR_LIMIT_DB = 100.0
SSIM_WINDOW = 11


class FidelityMetric(VideoMetric):
    """PSNR in dB (`psnr`) and SSIM (`ssim`), mean over frames, then over videos; data range 255.

    PSNR = 10 log10(255^2 / mse) with the mean squared error over one frame's pixels and channels. Equal frames would
    give infinity and make every mean infinite, so a frame's PSNR is clamped to 100 dB. SSIM: Wang et al. 2004, Gaussian
    window of 11 x 11 with sigma 1.5, K = 0.01 and 0.03, per channel, averaged over the windows that lie in the frame.
    """

    inputs = ("videos", "reference")
    keys = ("psnr", "ssim")
    higher_is_better = True

    def update(self, videos: Tensor, reference: Tensor, *, index: Sequence[int] | Tensor | None = None) -> None:
        """Add videos and their full-precision references, both uint8 [B,T,H,W,3]; `index` numbers them within the set.

        Raises:
            ValueError: on another dtype, on shapes that differ, or frames smaller than the SSIM window.
        """
        check_videos("videos", videos)
        check_videos("reference", reference)
        check_index(index, len(videos))
        _check_same_shape("videos", videos, reference)
        if min(videos.shape[2:4]) < SSIM_WINDOW:
            raise ValueError(
                f"frames have size {tuple(videos.shape[2:4])}; at least {SSIM_WINDOW} x {SSIM_WINDOW} is allowed"
            )
        scores = [_frame_means(video, ref) for video, ref in zip(videos, reference, strict=True)]
        self._record(index, len(videos), dict(zip(self.keys, zip(*scores, strict=True), strict=True)))


class LatentMetric(VideoMetric):
    """Relative L2 distance of final latents, ||x - ref|| / ||ref|| per video (`latent_rel_l2`), mean over videos."""

    inputs = ("latents", "reference_latents")
    keys = ("latent_rel_l2",)
    higher_is_better = False

    def update(self, latents: Tensor, reference: Tensor, *, index: Sequence[int] | Tensor | None = None) -> None:
        """Add latents and their full-precision references, both floating [B,...]; `index` numbers them within the set.

        Raises:
            ValueError: on shapes that differ or a reference that is zero.
        """
        check_index(index, len(latents))
        _check_same_shape("latents", latents, reference)
        reference = reference.double().flatten(1)
        norm = reference.norm(dim=1)
        if (norm == 0).any():
            raise ValueError("reference has norm 0; a relative distance needs latents that are not all zero")
        distance = (latents.double().flatten(1) - reference).norm(dim=1) / norm
        self._record(index, len(latents), {"latent_rel_l2": distance.tolist()})


def _check_same_shape(name: str, tensor: Tensor, reference: Tensor) -> None:
    if tensor.shape != reference.shape:
        shape, allowed = tuple(tensor.shape), tuple(reference.shape)
        raise ValueError(f"{name} have shape {shape}; only that of the reference {allowed} is allowed")


def _frame_means(video: Tensor, reference: Tensor) -> tuple[float, float]:
    """PSNR and SSIM of one video, uint8 [T,H,W,3], each averaged over the frames."""
    # float64: SSIM subtracts squared means from means of squares, both up to 255^2.
    video, reference = (v.permute(0, 3, 1, 2).to(torch.float64) for v in (video, reference))
    psnr = peak_signal_noise_ratio(video, reference, data_range=DATA_RANGE, reduction="none", dim=(1, 2, 3))
    _, ssim_map = structural_similarity_index_measure(
        video,
        reference,
        data_range=DATA_RANGE,
        kernel_size=SSIM_WINDOW,
        sigma=1.5,
        reduction="none",
        return_full_image=True,
    )
    # torchmetrics pads the frames and would average over windows that reach into the padding.
    border = SSIM_WINDOW // 2
    ssim = ssim_map[..., border:-border, border:-border].mean()
    return psnr.clamp(max=PSNR_LIMIT_DB).mean().item(), ssim.item()
