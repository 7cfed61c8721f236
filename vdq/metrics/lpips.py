"""LPIPS: perceptual distance to the full-precision video, frame by frame (Zhang et al., arXiv 1801.03924, version 0.1).

The network is torchmetrics', with its linear heads; the AlexNet below them is torchvision's file, which neither package
contains. It is read from a path or from torch hub's cache and never downloaded here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# The public class always fetches its backbone, so the network is built from the part below it.
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchvision.models import AlexNet_Weights

from vdq.errors import UserError
from vdq.metrics.base import VideoMetric, check_videos
from vdq.metrics.catalogue import LPIPS
from vdq.sources import sha256

FIELD = "metrics.lpips.weights"
URL = AlexNet_Weights.IMAGENET1K_V1.url
FILE = URL.rsplit("/", 1)[-1]
SHA256_PREFIX = FILE.removesuffix(".pth").rsplit("-", 1)[-1]
FETCH = (
    'python -c "from torchvision.models import AlexNet_Weights as W; W.IMAGENET1K_V1.get_state_dict(check_hash=True)"'
)
MIN_SIDE = 31  # below it AlexNet's second pooling has no window


class LpipsMetric(VideoMetric):
    """Mean LPIPS (AlexNet) over frames, then over videos (`lpips`): 0 for equal frames, usually below 1.

    Args:
        cache: folder of the digests of weights files.
        weights: AlexNet's state dict as torchvision publishes it; None: the file in torch hub's cache.
        frames_per_batch: most frames in one forward; a batch never mixes videos.

    Attributes:
        unavailable: why the metric has no weights and how to get them, None where it has them. Only without `weights`:
            a path that is given must be right.

    Raises:
        UserError: for a file that is missing or is no AlexNet, or one in torch hub's cache that is not the published
            one.
    """

    unsigned = ("weights", "cache")
    values = (LPIPS,)

    def __init__(self, *, cache: str, weights: str | None = None, frames_per_batch: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if frames_per_batch < 1:
            raise UserError(f"frames_per_batch is {frames_per_batch}; an integer >= 1 is allowed")
        self.frames_per_batch = frames_per_batch
        self.path = _hub_file() if weights is None else Path(weights).expanduser()
        self.unavailable = None
        if weights is None and not self.path.is_file():
            self.unavailable = f"lpips needs AlexNet's weights, and {self.path} does not exist; fetch it with `{FETCH}`"
            return
        if not self.path.is_file():
            raise UserError(f"{FIELD}={weights} must be an existing file, or null for {self.path}")
        self.net = _load(self.path)
        self.sha256 = sha256(self.path, Path(cache))  # later, so that a wrong file leaves nothing in the cache
        if weights is None and not self.sha256.startswith(SHA256_PREFIX):
            raise UserError(
                f"{self.path} is not the published file (its SHA-256 starts with {self.sha256[:8]}, not "
                f"{SHA256_PREFIX}); remove it and fetch it with `{FETCH}`"
            )

    @property
    def assets(self) -> dict[str, str]:
        return {} if self.unavailable else {f"LPIPS backbone {self.path.name}": self.sha256}

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        if min(height, width) < MIN_SIDE:
            return f"frames have size {height}x{width}; at least {MIN_SIDE}x{MIN_SIDE} is allowed"
        return None

    def update(self, videos: Tensor, reference: Tensor, *, index: Sequence[int] | Tensor | None = None) -> None:
        """Add videos and their full-precision references, both uint8 [B,T,H,W,3]; `index` numbers them within the set.

        Raises:
            UserError: on another dtype, shapes that differ, frames below 31 x 31 pixels, or without weights.
        """
        if self.unavailable:
            raise UserError(self.unavailable)
        self.validate(videos, index)
        check_videos("reference", reference)
        if videos.shape != reference.shape:
            shape, allowed = tuple(videos.shape), tuple(reference.shape)
            raise UserError(f"videos have shape {shape}; only that of the reference {allowed} is allowed")
        scores = [self._mean(video, ref) for video, ref in zip(videos, reference, strict=True)]
        self.record(index, {"lpips": scores})

    @torch.no_grad()
    def _mean(self, video: Tensor, reference: Tensor) -> float:
        """LPIPS of one video, uint8 [T,H,W,3], averaged over its frames."""
        batches = zip(video.split(self.frames_per_batch), reference.split(self.frames_per_batch), strict=True)
        values = [self.net(_to_unit(frames), _to_unit(ref)).flatten() for frames, ref in batches]
        return torch.cat(values).double().mean().item()


def _to_unit(frames: Tensor) -> Tensor:
    """uint8 [N,H,W,3] -> float32 [N,3,H,W] in -1..1."""
    return frames.movedim(-1, 1).float() / 127.5 - 1


def _hub_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


def _load(path: Path) -> nn.Module:
    """LPIPS with the AlexNet of `path`, whose `features.N` the network keeps as `sliceK.N`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        features = {name: value for name, value in state.items() if name.startswith("features.")}
        net = _random_net()
        names = {name: f"features.{name.split('.', 1)[1]}" for name in net.net.state_dict()}
        net.net.load_state_dict({name: features[source] for name, source in names.items()})
    except Exception as error:  # whatever torch raises on a file of another kind
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].strip()}"
        raise UserError(f"{FIELD}={path} is not torchvision's AlexNet ({reason}); {URL} is allowed") from error
    return net


def _random_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the random backbone is replaced, so it must not use up the stream
        return _NoTrainLpips(net="alex", pnet_rand=True)
