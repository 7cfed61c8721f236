"""The calibration pass: full-precision sampling of the calibration prompts with observers on every quantizable
linear.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from vdq.diffusion.timesteps import listed
from vdq.quant.observers import Observer
from vdq.quant.stats import Stats
from vdq.tasks.generation import Generation

log = logging.getLogger(__name__)


class Calibration(Generation):
    """Writes the statistics of all prompts and devices to ``path`` when the last prompt is done.

    Its noise is not that of the evaluation, so that no method is fitted to the noise it is scored on.
    """

    purpose = "calibration "

    def __init__(self, *, path: Path, signature: str, **settings) -> None:
        super().__init__(title="calibrating", **settings)
        self.path, self.signature = path, signature

    def on_predict_start(self) -> None:
        super().on_predict_start()
        self.seen = 0
        self.observer = Observer(self.denoiser, self.clock, self.model.quantizable, self.model.packed)
        self.observer.__enter__()

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> None:
        self.sample(self.denoiser, batch[0].tolist(), list(batch[1]))
        self.seen += len(batch[1])

    def on_predict_end(self) -> None:
        self.progress.close()
        self.observer.__exit__()
        facts = {"num_prompts": self.seen, "signature": self.signature, "window": self.window}
        stats = _merged(self.observer.stats(**facts, timesteps=listed(self.model.timesteps(self.sampler))))
        if self.trainer.is_global_zero:
            stats.save(self.path)
            if "denoising" in self.peaks:
                log.info("calibrate: peak memory on %s: %.2f GB", self.device.type, self.peaks["denoising"])


def _merged(stats: Stats) -> Stats:
    """The statistics of all processes together."""
    if not dist.is_initialized():
        return stats
    parts: list[Stats | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, stats)
    return parts[0].merge(*parts[1:])
