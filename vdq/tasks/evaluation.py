"""Scoring videos with every configured metric; correct under several processes, one video at a time in memory."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vdq import machine
from vdq.data.folder import Clip, read_clip
from vdq.data.samples import read_sample
from vdq.files import write_json, write_text
from vdq.metrics.base import VideoMetric, check_finite
from vdq.metrics.catalogue import described
from vdq.processes import end_with_parent

log = logging.getLogger(__name__)


class ScoredData(Dataset):
    """What is scored: items with their ``index`` and the tensors and texts named in ``inputs``.

    ``table`` has one row an item and says what it is; ``prompts`` are those of all items, if there are any.
    """

    inputs: set[str]
    table: pd.DataFrame
    prompts: list[str] | None

    def __len__(self) -> int:
        return len(self.table)


class SampleDataset(ScoredData):
    """Samples of a run beside those of its reference: prompt, video, latents, and the reference's if there is one."""

    def __init__(self, prompts: list[str], folder: Path, reference: Path | None) -> None:
        self.prompts, self.folder, self.reference = prompts, folder, reference
        self.table = pd.DataFrame({"index": range(len(prompts)), "prompt": prompts})
        self.inputs = {"prompts", "candidates", "videos", "latents"}
        self.inputs |= {"reference", "reference_latents"} if reference else set()

    def __getitem__(self, index: int) -> dict:
        sample = read_sample(self.folder, index)
        item = {
            "index": index,
            "prompts": self.prompts[index],
            "videos": sample["frames"],
            "latents": sample["latents"],
        }
        if self.reference is not None:
            reference = read_sample(self.reference, index)
            item |= {"reference": reference["frames"], "reference_latents": reference["latents"]}
        return item


class ClipDataset(ScoredData):
    """Videos of a folder with prompts and references; either all have one or none."""

    def __init__(self, clips: list[Clip]) -> None:
        self.clips = clips
        self.prompts = [clip.prompt for clip in clips] if clips[0].prompt is not None else None
        self.table = pd.DataFrame({"index": range(len(clips)), "file": [clip.path.name for clip in clips]})
        if self.prompts is not None:
            self.table["prompt"] = self.prompts
        self.inputs = {"videos"} | ({"prompts", "candidates"} if self.prompts is not None else set())
        self.inputs |= {"reference"} if clips[0].reference is not None else set()

    def __getitem__(self, index: int) -> dict:
        clip = self.clips[index]
        item = {"index": index, "videos": read_clip(clip.path)}
        if clip.prompt is not None:
            item["prompts"] = clip.prompt
        if clip.reference is not None:
            item["reference"] = read_clip(clip.reference)
        return item


class Evaluation(pl.LightningModule):
    """Writes ``metrics.json`` (set values and the machine) and ``per_video.csv`` into ``folder``; metrics without their
    inputs are left out, and so are, with a warning, those that are not available here.
    """

    def __init__(self, *, metrics: dict[str, VideoMetric], data: ScoredData, folder: Path, batch_size: int = 4) -> None:
        super().__init__()
        self.data, self.folder, self.batch_size = data, folder, batch_size
        self.metrics = nn.ModuleDict(usable(metrics, data.inputs))

    def setup(self, stage: str) -> None:
        end_with_parent()  # this may be one of several processes

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=self.batch_size)

    def on_test_start(self) -> None:
        for metric in self.metrics.values():
            metric.reset()
        batches = self.trainer.num_test_batches[0]
        self.progress = tqdm(total=batches, desc="scoring", unit="batch", disable=not self.trainer.is_global_zero)

    def test_step(self, batch: dict, batch_idx: int) -> None:
        batch["candidates"] = self.data.prompts
        for metric in self.metrics.values():
            metric.update(**{name: batch[name] for name in metric.inputs}, index=batch["index"])
        self.progress.update()

    def on_test_end(self) -> None:
        self.progress.close()
        values, assets, notes = {}, {}, {}
        table = self.data.table
        for metric in self.metrics.values():
            values |= _finite(metric.compute(), metric.assets)
            table = table.assign(**metric.per_video())
            assets |= metric.assets
            notes |= metric.notes(self.data.prompts or [])
        for name, count in notes.items():
            if count:
                log.info("scoring: %s: %d of %d", name.replace("_", " "), count, len(self.data))
        if self.trainer.is_global_zero:
            write_text(self.folder / "per_video.csv", table.to_csv(index=False))
            meaning = described(value for metric in self.metrics.values() for value in metric.values)
            scores = {"values": values, "described": meaning, "assets": assets, "notes": notes}
            scores |= {"num_videos": len(self.data), "machine": machine.describe(self.device)}
            write_json(self.folder / "metrics.json", scores)


def usable(metrics: dict[str, VideoMetric], inputs: set[str]) -> dict[str, VideoMetric]:
    """The metrics whose inputs are there and that are available; what else is missing is logged."""
    fitting = {name: metric for name, metric in metrics.items() if set(metric.inputs) <= inputs}
    for name, metric in fitting.items():
        if metric.unavailable:
            _say_once(f"metrics.{name} is left out: {metric.unavailable}")
    return {name: metric for name, metric in fitting.items() if not metric.unavailable}


def _finite(values: dict[str, float], assets: dict[str, str]) -> dict[str, float]:
    """The values of a set, which a metric may compute from others than those of videos. Raises UserError for NaN."""
    for name, value in values.items():
        check_finite(name, torch.tensor(value), assets)
    return values


@cache
def _say_once(sentence: str) -> None:
    """A sweep would repeat it for every run."""
    log.warning(sentence)
