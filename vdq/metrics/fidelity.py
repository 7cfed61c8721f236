"""How far a quantized model's output is from the full-precision one of the same prompt and noise.

`FidelityMetric` compares decoded frames (PSNR, SSIM), `LatentMetric` the latents before decoding. Neither says whether
a video is good: the full-precision video is the reference, whatever it shows.
"""

from collections.abc import Sequence

import numpy as np
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from vdq.errors import UserError
from vdq.metrics.base import VideoMetric, check_index, check_videos
from vdq.metrics.catalogue import LATENT_L2, PSNR, SSIM

DATA_RANGE = 255.0
PSNR_LIMIT_DB = 100.0
SSIM_WINDOW = 11


class FidelityMetric(VideoMetric):
    """PSNR in dB (`psnr`) and SSIM (`ssim`), mean over frames, then over videos; data range 255.

    PSNR = 10 log10(255^2 / mse) with the mean squared error over one frame's pixels and channels. Equal frames would
    give infinity and make every mean infinite, so a frame's PSNR is clamped to 100 dB. SSIM: Wang et al. 2004, Gaussian
    window of 11 x 11 with sigma 1.5, K = 0.01 and 0.03, per channel, averaged over the windows that lie in the frame.
    """

    values = (PSNR, SSIM)

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        if min(height, width) < SSIM_WINDOW:
            return f"frames have size {height}x{width}; at least {SSIM_WINDOW}x{SSIM_WINDOW} is allowed"
        return None

    def update(self, videos: Tensor, reference: Tensor, *, index: Sequence[int] | Tensor | None = None) -> None:
        """Add videos and their full-precision references, both uint8 [B,T,H,W,3]; `index` numbers them within the set.

        Raises:
            UserError: on another dtype, on shapes that differ, or frames smaller than the SSIM window.
        """
        self.validate(videos, index)
        check_videos("reference", reference)
        _check_same_shape("videos", videos, reference)
        scores = [_frame_means(video, ref) for video, ref in zip(videos, reference, strict=True)]
        self.record(index, dict(zip(self.keys, zip(*scores, strict=True), strict=True)))


class LatentMetric(VideoMetric):
    """Relative L2 distance of final latents, ||x - ref|| / ||ref|| per video (`latent_rel_l2`), mean over videos."""

    values = (LATENT_L2,)

    def update(
        self, latents: Tensor, reference_latents: Tensor, *, index: Sequence[int] | Tensor | None = None
    ) -> None:
        """Add latents and their full-precision references, both floating [B,...]; `index` numbers them within the set.

        Raises:
            UserError: on shapes that differ or reference latents that are zero.
        """
        check_index(index, len(latents))
        _check_same_shape("latents", latents, reference_latents)
        reference = reference_latents.double().flatten(1)
        norm = reference.norm(dim=1)
        if (norm == 0).any():
            raise UserError("reference_latents has norm 0; a relative distance needs latents that are not all zero")
        distance = (latents.double().flatten(1) - reference).norm(dim=1) / norm
        self.record(index, {"latent_rel_l2": distance.tolist()})


def _check_same_shape(name: str, tensor: Tensor, reference: Tensor) -> None:
    if tensor.shape != reference.shape:
        shape, allowed = tuple(tensor.shape), tuple(reference.shape)
        raise UserError(f"{name} have shape {shape}; only that of the reference {allowed} is allowed")


def _frame_means(video: Tensor, reference: Tensor) -> tuple[float, float]:
    """PSNR and SSIM of one video, uint8 [T,H,W,3], each averaged over the frames."""
    psnr = peak_signal_noise_ratio(
        video.double(), reference.double(), data_range=DATA_RANGE, reduction="none", dim=(1, 2, 3)
    )
    pairs = zip(video.cpu().numpy(), reference.cpu().numpy(), strict=True)
    return psnr.clamp(max=PSNR_LIMIT_DB).mean().item(), float(np.mean([_ssim(*pair) for pair in pairs]))


def _ssim(frame: np.ndarray, reference: np.ndarray) -> float:
    """scikit-image filters rows and columns one after the other, 40 times as fast as torchmetrics' whole window."""
    return structural_similarity(
        frame,
        reference,
        data_range=DATA_RANGE,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
