"""Trains the frame autoencoder: absolute and squared error, a light KL term."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from vdq.models.shapes_nets import build_autoencoder
from vdq.shapes.training.data import loader, random_frames


class AutoencoderTraining(pl.LightningModule):
    """Batches are frames [B, 3, 64, 64], each of another training scene."""

    def __init__(
        self, steps: int = 3500, epoch_steps: int = 100, batch_size: int = 16, lr: float = 1.5e-3, kl: float = 1e-4
    ):
        super().__init__()
        self.save_hyperparameters()
        self.net = build_autoencoder()

    def train_dataloader(self):
        return loader(
            lambda i: random_frames(i, 1)[0],
            batch_size=self.hparams.batch_size,
            steps=self.hparams.epoch_steps,
            epoch=self.current_epoch,
        )

    def training_step(self, frames: Tensor, _) -> Tensor:
        posterior = self.net.encode(frames).latent_dist
        error = self.net.decode(posterior.sample()).sample - frames
        # The shape is a tenth of the frame: without the weight the background is learned long before any colour.
        weight = 1 + 4 * (frames.amax(1, keepdim=True) - frames.amin(1, keepdim=True))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = (weight * (error.abs() + 2 * error.square())).mean() + self.hparams.kl * kl
        self.log_dict({"loss": loss, "rmse": error.detach().square().mean().sqrt(), "kl": kl}, prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, self.hparams.steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Reconstruction error on frames of training scenes that the training has not drawn."""
        self.net.eval()
        frames = torch.cat([random_frames(10_000_000 + i, 4) for i in range(128)])
        latents = self.net.encode(frames).latent_dist.mode()
        error = F.mse_loss(self.net.decode(latents).sample.clamp(-1, 1), frames) / 4
        return {"psnr_db": round(-10 * error.log10().item(), 2)}
