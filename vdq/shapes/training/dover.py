"""Trains the small DOVER that judges the quality of the testbed's videos, on renderings with graded damage.

A quarter of the renderings went through the testbed's autoencoder before they were damaged, since its softness is no
fault of a sampled video. Both branches learn quality = 1 - severity of their kind, by the mean absolute error, which
gives the rank between near severities more weight than the squared one.

One in two epochs shows four consecutive frames, the others whole videos: a batch of short ones costs as much and shows
four times as many scenes, so that damage within frames is learned from them and that over time from whole videos.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from safetensors.torch import load_model
from scipy.stats import spearmanr
from timm.optim import Muon
from torch import Tensor, nn
from torch.nn import functional as F

from vdq.metrics.dover.model import BRANCHES
from vdq.metrics.dover.views import aesthetic_clips, technical_clips
from vdq.models.frames import to_uint8
from vdq.models.shapes_nets import build_autoencoder
from vdq.shapes.distortions import SHARES, distort
from vdq.shapes.nets import AESTHETIC, TECHNICAL, build_dover
from vdq.shapes.render import FRAMES, render
from vdq.shapes.scenes import Scene, split
from vdq.shapes.training.data import loader, to_float, training_scene

HELD_OUT_VIDEOS = 480
SHORT_EPOCHS = (0,)  # of every two
SHORT = 4  # frames


class DoverTraining(pl.LightningModule):
    """Batches are technical views [B, 3, T, 64, 64], aesthetic views [B, 3, T / 2, 64, 64] and qualities [B, 2] 0..1,
    T = 4 in the short epochs and 16 in the others.

    ``weights`` is a folder with the testbed's autoencoder.
    """

    def __init__(
        self, weights: str, steps: int = 1200, epoch_steps: int = 25, batch_size: int = 24, lr: float = 3e-3
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="weights")
        self.net = build_dover()
        for name, parameter in self.net.named_parameters():
            if name.endswith(".gamma"):
                nn.init.constant_(parameter, 0.1)  # ConvNeXt's own start, 1e-6, is for very deep networks
        autoencoder = build_autoencoder().eval().requires_grad_(False)
        load_model(autoencoder, Path(weights) / "autoencoder.safetensors")
        self._autoencoder = (autoencoder,)  # a tuple hides it from the module's parameters

    def train_dataloader(self):
        short = self.current_epoch % 2 in SHORT_EPOCHS
        return loader(
            lambda i: self.example(
                training_scene(i), np.random.default_rng([i, 5]), SHORT if short else FRAMES, SHARES
            )[:3],
            batch_size=self.hparams.batch_size * (FRAMES // SHORT if short else 1),
            steps=self.hparams.epoch_steps,
            epoch=self.current_epoch,
        )

    def example(
        self, scene: Scene, rng: np.random.Generator, length: int = FRAMES, shares: dict[str, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, str]:
        """Both views of ``length`` consecutive frames, both qualities, and the name of the distortion."""
        first = int(rng.integers(FRAMES - length + 1))
        frames = render(scene, rng, slice(first, first + length))
        if rng.random() < 0.25:
            frames = self._decoded(frames)
        frames, technical, aesthetic, name = distort(frames, rng, shares)
        technical_view = replace(TECHNICAL, clip_frames=length, aligned=length)
        aesthetic_view = replace(AESTHETIC, clip_frames=length // 2, time_fragments=length // 2)
        video = torch.from_numpy(frames)
        views = (
            technical_clips(video, technical_view, torch.Generator())[0],
            aesthetic_clips(video, aesthetic_view, torch.Generator())[0],
        )
        return *views, torch.tensor([1 - technical, 1 - aesthetic]), name

    @torch.no_grad()
    def _decoded(self, frames: np.ndarray) -> np.ndarray:
        """What the autoencoder makes of a rendering."""
        (autoencoder,) = self._autoencoder
        video = autoencoder.decode(autoencoder.encode(to_float(frames)).latent_dist.mode()).sample
        return to_uint8(video.transpose(0, 1)).numpy()

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _) -> Tensor:
        technical, aesthetic, quality = batch
        errors = [F.l1_loss(raw, wanted) for raw, wanted in zip(self.raw(technical, aesthetic), quality.T, strict=True)]
        self.log_dict({"loss": sum(errors), "technical": errors[0], "aesthetic": errors[1]}, prog_bar=True)
        return sum(errors)

    def raw(self, technical: Tensor, aesthetic: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(technical, "technical"), self.net(aesthetic, "aesthetic")

    def configure_optimizers(self):
        """Muon for the matrices, AdamW for all else: it learned in a quarter of the steps."""
        muon = [p for name, p in self.named_parameters() if _is_matrix(name, p)]
        adamw = [p for name, p in self.named_parameters() if not _is_matrix(name, p)]
        groups = [{"params": muon}, {"params": adamw, "use_fallback": True}]
        optimizer = Muon(groups, lr=self.hparams.lr, nesterov=True, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.lr, self.hparams.steps, pct_start=0.05, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Spearman's rank correlation of raw score and quality on held-out scenes, and that of the technical branch
        for each distortion alone.
        """
        self.net.eval()
        scenes = split()["validation"]
        raw, wanted, names = [], [], []
        for number in range(HELD_OUT_VIDEOS):
            rng = np.random.default_rng([number, 6])
            technical, aesthetic, quality, name = self.example(scenes[number % len(scenes)], rng)
            raw.append(torch.cat(self.raw(technical[None], aesthetic[None])).numpy())
            wanted.append(quality.numpy())
            names.append(name)
        raw, wanted, names = np.array(raw), np.array(wanted), np.array(names)
        result = {f"held_out_spearman_{branch}": _spearman(raw, wanted, i) for i, branch in enumerate(BRANCHES)}
        for name in sorted(set(names) - {"none"}):
            alone = names == name
            result[f"technical_{name}"] = _spearman(raw[alone], wanted[alone], 0)
        return result | {"held_out_videos": HELD_OUT_VIDEOS}


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and not name.endswith("_table")


def _spearman(raw: np.ndarray, wanted: np.ndarray, branch: int) -> float:
    return float(spearmanr(raw[:, branch], wanted[:, branch]).statistic)
