"""DOVER with its published weights, from a local file or downloaded once."""

from pathlib import Path

from vdq.metrics.dover.model import Dover, build_dover, build_dover_mobile
from vdq.sources import Download, find_download, sha256

FIELD = "metrics.dover.model.weights"
RELEASES = "https://github.com/QualityAssessment/DOVER/releases/download"
DOVER = Download(
    field=FIELD,
    url=f"{RELEASES}/v0.1.0/DOVER.pth",
    sha256="f4a42c0bbc94c94dd7409e7f40887d44c5c30314d1d09e7edf03cc35813b4838",
    megabytes=239.6,
)
DOVER_MOBILE = Download(field=FIELD, url=f"{RELEASES}/v0.5.0/DOVER-Mobile.pth", sha256=None, megabytes=42.8)


def dover(weights: str | None = None, cache: str = "runs/cache") -> Dover:
    """DOVER with the weights of a local file, or the published ones, downloaded into `cache` once.

    Raises UserError when the file cannot be found, fetched or read, or holds other tensors.
    """
    return _load(build_dover(), DOVER, weights, Path(cache))


dover.unsigned = ("weights", "cache")


def dover_mobile(weights: str | None = None, cache: str = "runs/cache") -> Dover:
    """DOVER-Mobile, a fifth of the size, as `dover`. Its scores are others: never beside DOVER's in one column."""
    return _load(build_dover_mobile(), DOVER_MOBILE, weights, Path(cache))


dover_mobile.unsigned = ("weights", "cache")


def _load(model: Dover, download: Download, weights: str | None, cache: Path) -> Dover:
    path = find_download(download, weights, cache)
    model.load_published(path).requires_grad_(False)
    model.sha256 = sha256(path, cache)
    return model
