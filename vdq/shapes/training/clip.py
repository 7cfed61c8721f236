"""Trains the small CLIP that judges the testbed: contrastive loss over rendered frames and their captions."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch
from open_clip.loss import ClipLoss
from torch import Tensor

from vdq.models.shapes_tokenizer import build_tokenizer
from vdq.shapes.nets import build_clip
from vdq.shapes.render import render
from vdq.shapes.scenes import prompts, split
from vdq.shapes.training.data import loader, random_frames, to_float, training_scene, words


class ClipTraining(pl.LightningModule):
    """Batches are one frame [3, 64, 64] and one caption a scene; frames get noise so that artefacts do not confuse
    the judge.
    """

    def __init__(self, steps: int = 2600, epoch_steps: int = 100, batch_size: int = 64, lr: float = 1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.tokenizer = build_tokenizer()
        self.net = build_clip(len(self.tokenizer))
        self.loss = ClipLoss()

    def train_dataloader(self):
        return loader(
            lambda i: (random_frames(i, 1)[0], words(training_scene(i), i)),
            batch_size=self.hparams.batch_size,
            steps=self.hparams.epoch_steps,
            epoch=self.current_epoch,
        )

    def training_step(self, batch: tuple[Tensor, list[str]], _) -> Tensor:
        frames, texts = batch
        level = 0.15 * torch.rand(len(frames), 1, 1, 1, device=frames.device)
        frames = (frames + level * torch.randn_like(frames)).clamp(-1, 1)
        image, text, scale = self.net(frames, self.tokens(texts))
        loss = self.loss(image, text, scale)
        self.log("loss", loss, prog_bar=True)
        return loss

    def tokens(self, texts: list[str]) -> Tensor:
        batch = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return batch.input_ids.to(self.device)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, self.hparams.steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def measure(self, renderings: int = 4) -> dict[str, float]:
        """Top-1 by CLIPSIM on real renderings of the 48 held-out evaluation scenes, ``renderings`` of each."""
        self.net.eval()
        text = self.net.encode_text(self.tokens(prompts("evaluation")), normalize=True)
        hits = []
        for number, scene in enumerate(split()["evaluation"]):
            for take in range(renderings):
                frames = to_float(render(scene, np.random.default_rng([number, take, 2])))
                similarity = self.net.encode_image(frames, normalize=True) @ text.T
                hits.append(similarity.mean(0).argmax().item() == number)
        return {"held_out_top1": float(np.mean(hits)), "held_out_videos": len(hits)}
