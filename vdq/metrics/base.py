"""What every video metric shares: one value per key and video, the video's index, and the mean over the set.

States are concatenated across processes, so a set value does not depend on how the videos were spread over processes,
batches or update calls: videos are sorted by index, an index that was seen twice (a distributed sampler pads its last
batch with repeats) counts once, and the mean over videos is unweighted.
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vdq.errors import UserError
from vdq.metrics.catalogue import Value

logger = logging.getLogger(__name__)

UNNUMBERED = -1
INPUTS = ("videos", "prompts", "candidates", "latents", "reference", "reference_latents")


class VideoMetric(Metric):
    """Base class of the metrics. A new one says what its values are and scores the videos it is given:

        class Brightness(VideoMetric):
            values = (Value("brightness", "Brightness", digits=1),)

            def update(self, videos, *, index=None):
                self.validate(videos, index)
                self.record(index, {"brightness": videos.double().mean((1, 2, 3, 4)).tolist()})

    `update` is called by keyword and names what it needs: `videos` (uint8 [B,T,H,W,3]), `prompts`, `candidates` (all
    prompts of the set), `latents`, `reference` (full-precision videos) and `reference_latents`. Every score is recorded
    under its video's `index`; means, the order, repeats and several processes are this class's work.

    Attributes:
        values: name, title, digits, direction and unit of every value, in the order of `compute()`.
        unavailable: why the metric cannot be taken here, one sentence; None where it can. The evaluation then leaves
            it out and says so.

    Raises:
        TypeError: where `update` of a subclass takes an argument that no evaluation has.
    """

    values: ClassVar[tuple[Value, ...]]
    unsigned: ClassVar[tuple[str, ...]] = ()  # arguments that say where things are: no number depends on them
    is_differentiable = False
    full_state_update = False
    unavailable: str | None = None
    version = 1  # to be raised when the same videos would get other values

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if unknown := [name for name in _arguments(cls.update) if name not in INPUTS]:
            raise TypeError(f"{cls.__name__}.update takes {', '.join(unknown)}; allowed: {', '.join(INPUTS)}, index")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("index", default=[], dist_reduce_fx="cat")
        for key in self.keys:
            self.add_state(f"value_{key}", default=[], dist_reduce_fx="cat")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What `update` takes beside `index`."""
        return tuple(_arguments(type(self).update))

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the values."""
        return tuple(value.name for value in self.values)

    @property
    def assets(self) -> dict[str, str]:
        """Weights the metric used, name -> sha256; empty for a metric without weights."""
        return {}

    def notes(self, prompts: list[str]) -> dict[str, int]:
        """Counts that a result says beside the values, given all prompts of the set."""
        return {}

    def update(self, *, index: Sequence[int] | Tensor | None = None) -> None:
        """Scores a batch of videos; a subclass names its inputs before `index`, which numbers them within the set."""
        raise NotImplementedError(f"{type(self).__name__} has no update")

    def refusal(self, frames: int, height: int, width: int) -> str | None:
        """Why videos of this size have no value, in one sentence; None where they have one. `update` raises it."""
        return None

    def compute(self) -> dict[str, float]:
        """Unweighted mean over videos of each key; UserError if no video was given."""
        _, values = self._sorted()
        return {key: value.mean().item() for key, value in values.items()}

    def per_video(self) -> dict[str, list[float]]:
        """Values of each key, sorted by index; unnumbered videos come first, in the order of their updates.

        A collective operation like `compute`: under DDP every process calls it and gets the videos of all processes.
        """
        with self.sync_context():
            _, values = self._sorted()
        return {key: value.tolist() for key, value in values.items()}

    def per_video_index(self) -> list[int]:
        """Indices of the videos in the order of `per_video()`, -1 where `update` was given none; collective as well."""
        with self.sync_context():
            index, _ = self._sorted()
        return index.tolist()

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; also from a process that was given no video."""
        # torchmetrics would send an empty float32 tensor for an empty list, and a gather needs one dtype everywhere.
        if not self._is_synced and isinstance(self.index, list) and not self.index:
            self._append([], {key: [] for key in self.keys})
        super().sync(*args, **kwargs)

    def validate(self, videos: Tensor, index: Sequence[int] | Tensor | None) -> None:
        """Raises UserError unless `videos` are uint8 [B,T,H,W,3] of a size that has a value, and `index` fits them."""
        check_videos("videos", videos)
        check_index(index, len(videos))
        if reason := self.refusal(*videos.shape[1:4]):
            raise UserError(reason)

    def record(self, index: Sequence[int] | Tensor | None, scores: Mapping[str, Sequence[float] | Tensor]) -> None:
        """Keeps scores, for each of `keys` one number a video; where index is None the videos stay unnumbered.

        Raises:
            UserError: for a score that is NaN or infinite, with which there is no mean.
            ValueError: where there are more or fewer scores than videos.
        """
        numbers = [UNNUMBERED] * len(scores[self.keys[0]]) if index is None else [int(i) for i in index]
        for key in self.keys:
            if len(scores[key]) != len(numbers):
                raise ValueError(f"{type(self).__name__} has {len(scores[key])} scores {key} of {len(numbers)} videos")
            check_finite(key, torch.as_tensor(scores[key]), self.assets)
        self._append(numbers, scores)

    def _append(self, index: list[int], values: Mapping[str, Sequence[float]]) -> None:
        self.index.append(torch.tensor(index, dtype=torch.long, device=self.device))
        for key in self.keys:
            value = torch.tensor(values[key], dtype=torch.float64, device=self.device)
            getattr(self, f"value_{key}").append(value)

    def _sorted(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Index and values of the distinct videos, sorted by index."""
        index = dim_zero_cat(self.index) if len(self.index) else torch.empty(0)
        if not len(index):
            raise UserError(f"{type(self).__name__} has no value because it was given no video")
        index, order = torch.sort(index, stable=True)
        repeated = torch.zeros_like(index, dtype=torch.bool)
        repeated[1:] = (index[1:] == index[:-1]) & (index[1:] != UNNUMBERED)
        values = {key: dim_zero_cat(getattr(self, f"value_{key}"))[order] for key in self.keys}
        self._report_conflicts(index, repeated, values)
        return index[~repeated], {key: value[~repeated] for key, value in values.items()}

    def _report_conflicts(self, index: Tensor, repeated: Tensor, values: Mapping[str, Tensor]) -> None:
        for key, value in values.items():
            differs = repeated.clone()
            differs[1:] &= ~torch.isclose(value[1:], value[:-1], rtol=1e-5, atol=1e-6)
            if differs.any():
                videos = sorted(set(index[differs].tolist()))
                logger.warning("%s: videos %s came more than once with different values; the first counts", key, videos)


def _arguments(update: Callable[..., None]) -> list[str]:
    """Names of what a metric's `update` takes beside itself and the index."""
    return [name for name in inspect.signature(update).parameters if name not in ("self", "index")]


def check_videos(name: str, videos: Tensor) -> None:
    """Raises UserError unless `videos` is uint8 [B,T,H,W,3] with at least one video of at least one frame."""
    if not isinstance(videos, Tensor) or videos.dtype != torch.uint8:
        found = getattr(videos, "dtype", type(videos).__name__)
        raise UserError(f"{name} has type {found}; only a tensor of torch.uint8 is allowed")
    if videos.ndim != 5 or videos.shape[-1] != 3 or min(videos.shape[:2]) < 1:
        raise UserError(f"{name} has shape {tuple(videos.shape)}; only [B,T,H,W,3] with B >= 1 and T >= 1 is allowed")


def check_finite(name: str, values: Tensor, assets: Mapping[str, str]) -> None:
    """Raises UserError, which names the networks in `assets`, unless all values are finite numbers."""
    if not bool(torch.isfinite(values).all()):
        by = f"; the weights of {' or '.join(assets)} may be damaged" if assets else ""
        raise UserError(f"{name} has NaN or infinite values{by}")


def check_index(index: Sequence[int] | Tensor | None, count: int) -> None:
    """Raises UserError unless `index` is None or holds `count` integers >= 0."""
    if index is None:
        return
    numbers = [int(i) for i in index]
    if len(numbers) != count or any(i < 0 for i in numbers):
        raise UserError(f"index is {numbers}; one integer >= 0 for each of the {count} videos is allowed")
