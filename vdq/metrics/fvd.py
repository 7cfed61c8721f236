"""FVD: the Fréchet distance between I3D features of two sets of videos (Unterthiner et al., arXiv 1812.01717).

    FVD = |mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^1/2)    mu, S: mean and covariance (n - 1) of a set's features

The features are those of a detector: as published the 400 logits of the I3D network that StyleGAN-V put out as
TorchScript, which resizes the frames to 224 x 224 itself; StyleGAN-V's own code divides the covariance by n. The
testbed has a small network of its own (vdq.shapes.fvd), whose values carry a label. A value depends on the number of
videos (few give a larger one) and of frames, on the frame rate and on the network: it compares only with values made
the same way. The paper reports none.
"""

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from vdq.errors import UserError
from vdq.files import complete_or_nothing
from vdq.metrics.base import VideoMetric, check_finite, check_videos
from vdq.metrics.catalogue import FVD, FVD_FP16
from vdq.sources import Download, find_download, sha256

logger = logging.getLogger(__name__)

I3D = Download(
    field="metrics.fvd_fp16.detector.weights",
    url="https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
    sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
    megabytes=51,
)
WIDTH = 400
MIN_FRAMES = 10
FEW_VIDEOS = 256
FEATURES_VERSION = 1  # to be raised when the same detector and clips would give other features of real clips


class Detector(Protocol):
    """An nn.Module whose features of `width` numbers a distance compares; `sha256` is that of its weights."""

    name: str
    sha256: str
    width: int

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        """Why it cannot take videos of this size, in one sentence; None where it can."""
        ...

    def features(self, videos: Tensor) -> Tensor:
        """uint8 [B,T,H,W,3] to float32 [B,width]; UserError for videos that it cannot take."""
        ...


class I3dDetector(nn.Module):
    """StyleGAN-V's I3D, trained on Kinetics-400: videos to its 400 logits.

    Args:
        cache: folder of downloads and of their digests.
        weights: the TorchScript file; None: the published one, downloaded when the cache has none.

    Raises:
        UserError: for a file that cannot be had, is no TorchScript, or does not give 400 logits for a video.
    """

    unsigned = ("weights", "cache")
    name = "I3D StyleGAN-V, 400 logits"
    width = WIDTH

    def __init__(self, cache: str, weights: str | None = None) -> None:
        super().__init__()
        path = find_download(I3D, weights, Path(cache))
        self.net = _load(path)
        self.sha256 = sha256(path, Path(cache))  # later, so that a wrong file leaves nothing in the cache

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        return too_short(frames)

    @torch.no_grad()
    def features(self, videos: Tensor) -> Tensor:
        """uint8 [B,T,H,W,3] with T >= 10 to float32 [B,400], one video at a time; UserError for other videos."""
        check_videos("videos", videos)
        if reason := too_short(videos.shape[1]):
            raise UserError(reason)
        return torch.cat([_logits(self.net, video) for video in videos])


def too_short(frames: int) -> str | None:
    """Why I3D cannot take videos of so many frames."""
    return f"videos have {frames} frames; I3D needs T >= {MIN_FRAMES}" if frames < MIN_FRAMES else None


class RealClips(Protocol):
    """A set of real clips of `num_frames` frames; `name` and `signature` say which clips they are."""

    name: str
    signature: str
    num_frames: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [num_frames,H,W,3]."""
        ...


class FrechetVideoDistance(VideoMetric):
    """What both distances share. label: names the values of another detector, `fvd_<label>`.

    Only the set has a value, so the state of the key holds the videos' features, float32 [n, len(inputs), width];
    order, repeats and processes stay the base class's work.
    """

    def __init__(self, *, detector: Detector, label: str = "", **kwargs: Any) -> None:
        self.values = tuple(value.labelled(label) for value in type(self).values)
        super().__init__(**kwargs)
        self.detector = detector

    @property
    def assets(self) -> dict[str, str]:
        return {self.detector.name: self.detector.sha256}

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        return self.detector.refusal(frames, height, width)

    def compute(self) -> dict[str, float]:
        """The distance; UserError for fewer than 2 videos or clips."""
        (key,) = self.keys
        features = self._sorted()[1][key]
        real = self._real_set(features)
        if (count := min(len(features), len(real))) < FEW_VIDEOS:
            logger.warning(
                "%s: %d videos; with fewer than %d it is biased, and comparable with no other value",
                key,
                count,
                FEW_VIDEOS,
            )
        return {key: frechet_distance(features[:, 0], real)}

    def per_video(self) -> dict[str, list[float]]:
        """No values of single videos: the distance belongs to the set."""
        return {}

    def _real_set(self, features: Tensor) -> Tensor:
        """Features of the real set, [m,400]."""
        raise NotImplementedError

    def _append(self, index: list[int], values: Mapping[str, Any]) -> None:
        (key,) = self.keys
        features = torch.as_tensor(values[key], dtype=torch.float32, device=self.device)
        self.index.append(torch.tensor(index, dtype=torch.long, device=self.device))
        getattr(self, f"value_{key}").append(features.reshape(len(index), len(self.inputs), self.detector.width))

    def _report_conflicts(self, index: Tensor, repeated: Tensor, values: Mapping[str, Tensor]) -> None:
        lengths = {key: features.flatten(1).norm(dim=1) for key, features in values.items()}
        super()._report_conflicts(index, repeated, lengths)


class FvdMetric(FrechetVideoDistance):
    """Distance of the videos from real clips (`fvd`).

    Args:
        detector: network of the features.
        real: the real clips, such as `vdq.data.ucf101_clips.Ucf101Clips`; the videos must have as many frames.
        cache: folder in which the features of the clips are kept.
    """

    unsigned = ("cache",)
    values = (FVD,)

    def __init__(self, *, detector: Detector, real: RealClips, cache: str, label: str = "", **kwargs: Any) -> None:
        super().__init__(detector=detector, label=label, **kwargs)
        self.real, self.cache = real, Path(cache)

    @property
    def assets(self) -> dict[str, str]:
        return super().assets | {self.real.name: self.real.signature}

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        if frames != self.real.num_frames:
            return f"videos have {frames} frames; only the real clips' {self.real.num_frames} is allowed"
        return super().refusal(frames, height, width)

    def update(self, videos: Tensor, *, index: Sequence[int] | Tensor | None = None) -> None:
        """Add videos, uint8 [B,T,H,W,3]; `index` numbers them within the set.

        Raises:
            UserError: on another dtype or shape, or another number of frames than the real clips have.
        """
        self.validate(videos, index)
        self.record(index, {self.keys[0]: self.detector.features(videos)})

    def _real_set(self, features: Tensor) -> Tensor:
        return real_features(self.detector, self.real, self.cache).to(features.device)


class FvdFp16Metric(FrechetVideoDistance):
    """Distance of the videos from the full-precision videos of the same prompts and noise (`fvd_fp16`), ViDiT-Q's
    FVD-FP16 (arXiv 2406.02540). The pairing does not matter, only the two sets.
    """

    values = (FVD_FP16,)

    def update(self, videos: Tensor, reference: Tensor, *, index: Sequence[int] | Tensor | None = None) -> None:
        """Add videos and their full-precision references, both uint8 [B,T,H,W,3]; `index` numbers them within the set.

        Raises:
            UserError: on another dtype, shapes that differ, or fewer than 10 frames.
        """
        self.validate(videos, index)
        check_videos("reference", reference)
        if videos.shape != reference.shape:
            shape, allowed = tuple(videos.shape), tuple(reference.shape)
            raise UserError(f"videos have shape {shape}; only that of the reference {allowed} is allowed")
        features = torch.stack([self.detector.features(videos), self.detector.features(reference)], dim=1)
        self.record(index, {self.keys[0]: features})

    def _real_set(self, features: Tensor) -> Tensor:
        return features[:, 1]


def frechet_distance(features: Tensor, real: Tensor) -> float:
    """The distance of two sets of features, [n,d] and [m,d], in float64; UserError unless n >= 2 and m >= 2.

    For n or m <= d the covariance is singular; the value then has an error of about 1e-7 of the traces.
    """
    if min(len(features), len(real)) < 2:
        raise UserError(f"the sets have {len(features)} and {len(real)} videos; a covariance needs at least 2 each")
    features, real = features.double().cpu(), real.double().cpu()
    # The distance does not depend on the origin, and torchmetrics subtracts squared means from means of squares.
    origin = real.mean(dim=0)
    identity = nn.Identity()
    identity.num_features = real.shape[1]
    # Every process has the features of all by now: they must not be summed over processes again.
    distance = FrechetInceptionDistance(feature=identity, sync_on_compute=False)
    distance.update(real - origin, real=True)
    distance.update(features - origin, real=False)
    # Rounding can leave equal sets just below 0.
    return max(distance.compute().item(), 0.0)


def real_features(detector: Detector, clips: RealClips, cache: Path) -> Tensor:
    """Features of the clips, float32 [len(clips),width] on the CPU, computed once for a detector and a set of clips."""
    key = hashlib.sha256(f"{detector.sha256} {clips.signature} {FEATURES_VERSION}".encode()).hexdigest()[:16]
    path = cache / "fvd" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # one of several processes computes them
        features = _read(path, (len(clips), detector.width))
        if features is None:
            device = next((tensor.device for tensor in detector.state_dict().values()), torch.device("cpu"))
            bar = tqdm(range(len(clips)), desc=f"features of {clips.name}", unit="clip")
            features = torch.cat([detector.features(clips[i][None].to(device)).cpu() for i in bar])
            check_finite(f"the set of features of {clips.name}", features, {detector.name: detector.sha256})
            with complete_or_nothing(path) as partial:
                save_file({"features": features}, partial, metadata={"detector": detector.sha256, "clips": clips.name})
    return features


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Features in the cache, None where there are none or not those."""
    if not path.is_file():
        return None
    try:
        features = load_file(path)["features"]
        if features.shape == shape:
            return features
        reason = f"shape {tuple(features.shape)}"
    except (SafetensorError, KeyError) as error:
        reason = str(error).splitlines()[0]
    logger.warning("%s is damaged (%s); the features are computed again", path, reason)
    return None


def _load(path: Path) -> nn.Module:
    """The network, tried on a black video so that a wrong file is refused before anything is scored."""
    try:
        with warnings.catch_warnings():
            # torch prefers torch.export by now; the network is published as TorchScript only.
            warnings.simplefilter("ignore", FutureWarning)
            net = torch.jit.load(path, map_location="cpu").eval()
        with torch.no_grad():
            shape = tuple(_logits(net, torch.zeros(MIN_FRAMES, 32, 32, 3, dtype=torch.uint8)).shape)
    except Exception as error:  # whatever TorchScript raises on a file of another kind or another signature
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].strip()}"
        raise UserError(f"{I3D.field}={path} is not the TorchScript of I3D ({reason}); {I3D.url} is allowed") from error
    if shape != (1, WIDTH):
        raise UserError(f"{I3D.field}={path} gives features of shape {shape} for a video; only (1, {WIDTH}) is allowed")
    return net


def _logits(net: nn.Module, video: Tensor) -> Tensor:
    """uint8 [T,H,W,3] -> [1,400]; the network scales 0..255 and resizes by itself."""
    return net(video.permute(3, 0, 1, 2)[None].float(), rescale=True, resize=True, return_features=True)
