"""Trains the STDiT and its text encoder together on latents: noise prediction, and a bound for the variance.

Epochs alternate between single frames and whole videos. A batch of frames costs as much as a batch of videos but shows
twelve times as many scenes, so that words are learned from frames and motion from videos.

The loss is the hybrid one of Nichol and Dhariwal (2021, eq. 16), its first term weighted over timesteps. The bound
trains the variance only: its mean is detached.
"""

from __future__ import annotations

import random

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from vdq.diffusion.schedule import Schedule
from vdq.shapes.nets import build_denoiser, build_text_encoder
from vdq.shapes.tokenizer import build_tokenizer
from vdq.shapes.training.data import loader, training_scene, words

NULL_SHARE = 0.1
MAX_WEIGHT = 25.0


class DenoiserTraining(pl.LightningModule):
    """Batches are latents [B, 4, F, 8, 8] and captions, F = 1 in even epochs and 16 in odd ones.

    10 % of the captions are replaced by the null caption. ``latents`` is fp16 [videos, 4, 16, 8, 8]; ``start`` is a
    file of weights to go on from.
    """

    def __init__(
        self,
        latents: Tensor,
        steps: int = 4200,
        epoch_steps: int = 25,
        batch_size: int = 32,
        frame_batch_size: int = 384,
        lr: float = 1.5e-3,
        ema_decay: float = 0.998,
        start: str | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(ignore="latents")
        self.latents = latents
        self.tokenizer = build_tokenizer()
        self.text = build_text_encoder(len(self.tokenizer))
        self.net = build_denoiser()
        with torch.device("meta"):  # no weights of its own, and a tuple hides it from the module's parameters
            self._frame_net = (build_denoiser(frames=1),)
        self.schedule = Schedule(1000)
        if start is not None:
            self.load_state_dict(load_file(start))

    def train_dataloader(self):
        frames_only = self.current_epoch % 2 == 0
        return loader(
            self._frame if frames_only else self._video,
            batch_size=self.hparams.frame_batch_size if frames_only else self.hparams.batch_size,
            steps=self.hparams.epoch_steps,
            epoch=self.current_epoch,
        )

    def _video(self, index: int) -> tuple[Tensor, str]:
        video = random.Random(f"video {index}").randrange(len(self.latents))
        return self.latents[video].float(), words(training_scene(video), index)

    def _frame(self, index: int) -> tuple[Tensor, str]:
        latents, text = self._video(index)
        frame = random.Random(f"frame {index}").randrange(latents.shape[1])
        return latents[:, frame : frame + 1], text

    def _denoise(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """The network on whole videos or, with the same weights, on single frames."""
        if x.shape[2] > 1:
            return self.net(x, timestep, y, mask)
        weights = dict(self.net.named_parameters()) | dict(self.net.named_buffers())
        weights["pos_embed_temporal"] = self.net.pos_embed_temporal[:, :1]
        return functional_call(self._frame_net[0], weights, (x, timestep, y, mask))

    def training_step(self, batch: tuple[Tensor, list[str]], _) -> Tensor:
        x0, texts = batch
        y, mask = self.captions(texts)
        timestep = torch.randint(0, 1000, (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        x = self.schedule.q_sample(x0, timestep, noise)
        eps, v = self._denoise(x, timestep, y, mask).chunk(2, dim=1)
        error = (self._weight(timestep) * F.mse_loss(eps, noise, reduction="none")).mean()
        bound = self._bound(x0, x, timestep, eps.detach(), v).mean()
        self.log_dict({"loss": error + bound, "error": error, "bound": bound}, prog_bar=True)
        return error + bound

    def _weight(self, timestep: Tensor) -> Tensor:
        """1 / sqrt(abar) up to 25, [B, 1, 1, 1, 1]: evens out the error over timesteps.

        Noise is easiest to predict where there is most of it, yet there the content is decided: without the weight a
        short training learns textures long before it listens to words.
        """
        weight = self.schedule.train_alphas_cumprod[timestep.cpu()].rsqrt().clamp(max=MAX_WEIGHT)
        return weight.float().to(self.device).view(-1, 1, 1, 1, 1)

    def captions(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Features [B, 1, L, D] with null captions mixed in, and the mask [B, L], which a null caption shares."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").to(self.device)
        y = self.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        null = torch.rand(len(texts), 1, 1, device=self.device) < NULL_SHARE
        return torch.where(null, self.net.y_embedder.y_embedding, y)[:, None], tokens.attention_mask

    def _bound(self, x0: Tensor, x: Tensor, timestep: Tensor, eps: Tensor, v: Tensor) -> Tensor:
        """Divergence in bits between the true and the model's posterior, per element; step 0 is its likelihood of
        x0.
        """
        s, step = self.schedule, 999 - timestep.cpu()

        def at(table: Tensor) -> Tensor:
            return table[step].to(x).view(-1, 1, 1, 1, 1)

        predicted_x0 = at(s.sqrt_recip_alphas_cumprod) * x - at(s.sqrt_recipm1_alphas_cumprod) * eps
        mean = at(s.posterior_mean_coef1) * predicted_x0 + at(s.posterior_mean_coef2) * x
        true_mean = at(s.posterior_mean_coef1) * x0 + at(s.posterior_mean_coef2) * x
        true_log_variance = at(s.posterior_log_variance)
        share = (v + 1) / 2
        log_variance = share * at(s.log_betas) + (1 - share) * true_log_variance
        squared = (true_mean - mean).square()
        ratio = true_log_variance - log_variance
        divergence = 0.5 * (ratio.exp() - ratio - 1 + squared * (-log_variance).exp())
        return divergence / 0.6931471805599453

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.0, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, self.hparams.steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
