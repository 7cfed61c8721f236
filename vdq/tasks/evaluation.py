"""Scoring finished samples with every configured metric; correct under several processes, one video at a time in
memory.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vdq.data.samples import read_sample
from vdq.files import write_json, write_text
from vdq.metrics.base import VideoMetric


class SampleDataset(Dataset):
    """Samples of a run beside those of its reference: index, prompt, video, latents, and the reference's if there is
    one.
    """

    def __init__(self, prompts: list[str], folder: Path, reference: Path | None) -> None:
        self.prompts, self.folder, self.reference = prompts, folder, reference

    def __len__(self) -> int:
        return len(self.prompts)

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


class Evaluation(pl.LightningModule):
    """Writes ``metrics.json`` (set values) and ``per_video.csv`` into ``folder``; metrics without their inputs are
    left out.
    """

    def __init__(
        self,
        *,
        metrics: dict[str, VideoMetric],
        prompts: list[str],
        folder: Path,
        reference: Path | None,
        batch_size: int = 4,
    ) -> None:
        super().__init__()
        self.data = SampleDataset(prompts, folder, reference)
        available = {"prompts", "candidates", "videos", "latents"} | (
            {"reference", "reference_latents"} if reference else set()
        )
        self.metrics = nn.ModuleDict({name: m for name, m in metrics.items() if set(m.inputs) <= available})
        self.folder, self.batch_size = folder, batch_size

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
            metric.update(*(batch[name] for name in metric.inputs), index=batch["index"])
        self.progress.update()

    def on_test_end(self) -> None:
        self.progress.close()
        values, better, assets = {}, {}, {}
        table = pd.DataFrame({"index": range(len(self.data)), "prompt": self.data.prompts})
        for metric in self.metrics.values():
            values |= metric.compute()
            table = table.assign(**metric.per_video())
            better |= dict.fromkeys(metric.keys, metric.higher_is_better)
            assets |= metric.assets
        if self.trainer.is_global_zero:
            write_text(self.folder / "per_video.csv", table.to_csv(index=False))
            scores = {"values": values, "higher_is_better": better, "assets": assets, "num_videos": len(self.data)}
            write_json(self.folder / "metrics.json", scores)
