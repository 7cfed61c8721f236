"""The small DOVER as the testbed's VQA metric. It learned the testbed's own distortions, so its values do not compare
with DOVER's.
"""

from __future__ import annotations

from pathlib import Path

from vdq.errors import UserError
from vdq.metrics.dover.metric import DoverMetric
from vdq.metrics.dover.model import BRANCHES, Dover
from vdq.metrics.dover.scores import Spread
from vdq.shapes.nets import AESTHETIC, TECHNICAL, build_dover
from vdq.sources import digest

CONSTANTS = dict.fromkeys(BRANCHES, Spread(0.5, 0.15))  # its raw scores are qualities 0..1
WEIGHTS = Path(__file__).parent / "weights" / "dover.safetensors"


def metric(weights: str | None = None) -> DoverMetric:
    """VQA-a and VQA-t of videos of 16 frames of 64 x 64 pixels, 0..100; what it sees of them is not random.

    Raises UserError for a file of weights that is missing or holds other tensors.
    """
    return DoverMetric(model=dover(weights), technical=TECHNICAL, aesthetic=AESTHETIC, constants=CONSTANTS)


metric.unsigned = ("weights",)


def dover(weights: str | None = None) -> Dover:
    """The network with its weights, None those that ship with the package; UserError as `metric`."""
    path = Path(weights or WEIGHTS)
    if not path.is_file():
        raise UserError(f"metrics.dover.weights={path} is no file; train it with `python -m vdq.shapes.train_dover`")
    model = build_dover().load_published(path).eval().requires_grad_(False)
    model.sha256 = digest(path)
    return model
