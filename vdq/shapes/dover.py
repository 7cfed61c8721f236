"""The small DOVER as the testbed's VQA metric. It learned the testbed's own distortions: never to be compared with
DOVER.
"""

from __future__ import annotations

from pathlib import Path

from vdq.errors import UserError
from vdq.metrics.dover.metric import DoverMetric
from vdq.metrics.dover.model import Dover
from vdq.shapes.nets import AESTHETIC, TECHNICAL, build_dover
from vdq.sources import digest

WEIGHTS = Path(__file__).parent / "weights" / "dover.safetensors"


def metric(weights: str | None = None) -> DoverMetric:
    """VQA-a and VQA-t of videos of 16 frames of 64 x 64 pixels, 0..100; what it sees of them is not random.

    Raises UserError for a file of weights that is missing or holds other tensors.
    """
    return DoverMetric(model=dover(weights), technical=TECHNICAL, aesthetic=AESTHETIC, constants="shapes")


metric.unsigned = ("weights",)


def dover(weights: str | None = None) -> Dover:
    """The network with its weights, None those that ship with the package; ValueError as `metric`."""
    path = Path(weights or WEIGHTS)
    if not path.is_file():
        raise UserError(f"metrics.dover.weights={path} is no file; train it with `python -m vdq.shapes.train_dover`")
    model = build_dover().load_published(path).eval().requires_grad_(False)
    model.sha256 = digest(path)
    return model
