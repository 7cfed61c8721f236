"""Trains the STDiT and its text encoder together on latents: noise prediction, and a bound for the variance.

Two in five epochs show single frames, the others whole videos. A batch of frames costs as much as a batch of videos
but shows twelve times as many scenes, so that words are learned from frames and coherence from videos. A single frame
carries the temporal position it has in its video, which teaches where motion has brought the shape by then. Motions
come in opposite pairs: shown equally often, a frame's number alone would say nothing of the shape's place, and number
and word would have to be found at once. So the first steps leave one direction of each pair out, and the next ones show
it less often.

The loss is the hybrid one of Nichol and Dhariwal (2021, eq. 16), its first term weighted over timesteps. The bound
trains the variance only: its mean is detached.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from safetensors.torch import load_model
from timm.optim import Muon
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from transformers import T5EncoderModel

from vdq.diffusion.schedule import Schedule
from vdq.models.shapes_nets import build_denoiser, build_text_encoder
from vdq.models.shapes_tokenizer import build_tokenizer
from vdq.shapes.training.data import loader, training_scene, words

FRAME_EPOCHS = (0, 2)  # of every five
NULL_SHARE = 0.1
MAX_WEIGHT = 1000.0
TABLES = ("scale_shift_table", "relative_attention_bias", "t_block")


class DenoiserTraining(pl.LightningModule):
    """Batches are latents [B, 4, F, 8, 8], captions and the number of the first frame, F = 1 in the epochs of frames
    and 16 in the others.

    10 % of the captions are replaced by the null caption. ``latents`` is fp16 [videos, 4, 16, 8, 8]; ``start`` is a
    folder of weights to go on from, such as the one that ships. The first ``first_motions_steps`` steps show
    ``first_motions`` only; until ``uneven_steps`` those of ``frequent`` are shown three times as often as the others.
    """

    def __init__(
        self,
        latents: Tensor,
        steps: int = 4700,
        first_motions: Sequence[str] = ("right", "grow", "still"),
        first_motions_steps: int = 250,
        frequent: Sequence[str] = ("right", "down", "grow"),
        uneven_steps: int = 1100,
        epoch_steps: int = 25,
        batch_size: int = 32,
        frame_batch_size: int = 384,
        lr: float = 2e-3,
        ema_decay: float = 0.998,
        start: str | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(ignore="latents")
        self.latents = latents
        motions = [training_scene(video).motion for video in range(len(latents))]
        self.first = [video for video, motion in enumerate(motions) if motion in first_motions]
        self.uneven = [video for video, motion in enumerate(motions) for _ in range(3 if motion in frequent else 1)]
        self.even = list(range(len(latents)))
        self.tokenizer = build_tokenizer()
        self.text = build_text_encoder(len(self.tokenizer))
        self.net = build_denoiser()
        with torch.device("meta"):  # no weights of its own, and a tuple hides it from the module's parameters
            self._frame_net = (build_denoiser(frames=1),)
        self.schedule = Schedule(1000)
        if start is None:
            _look_at_neighbours(self.text)
        else:
            load_model(self.net, Path(start) / "denoiser.safetensors")
            load_model(self.text, Path(start) / "text_encoder.safetensors")

    def train_dataloader(self):
        frames_only = self.current_epoch % 5 in FRAME_EPOCHS
        return loader(
            self._frame if frames_only else self._video,
            batch_size=self.hparams.frame_batch_size if frames_only else self.hparams.batch_size,
            steps=self.hparams.epoch_steps,
            epoch=self.current_epoch,
        )

    def _video(self, index: int) -> tuple[Tensor, str, int]:
        video = random.Random(f"video {index}").choice(self._videos())
        return self.latents[video].float(), words(training_scene(video), index), 0

    def _videos(self) -> list[int]:
        """The videos that may be shown in this epoch, some of them several times."""
        step = self.current_epoch * self.hparams.epoch_steps
        if step < self.hparams.first_motions_steps:
            return self.first
        return self.uneven if step < self.hparams.uneven_steps else self.even

    def _frame(self, index: int) -> tuple[Tensor, str, int]:
        latents, text, _ = self._video(index)
        frame = random.Random(f"frame {index}").randrange(latents.shape[1])
        return latents[:, frame : frame + 1], text, frame

    def denoise(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor, frame: Tensor) -> Tensor:
        """The network on whole videos or, with the same weights, on single frames of number ``frame`` [B]."""
        if x.shape[2] > 1:
            return self.net(x, timestep, y, mask)
        weights = dict(self.net.named_parameters()) | dict(self.net.named_buffers())
        weights["pos_embed_temporal"] = self.net.pos_embed_temporal[0, frame][:, None]  # [B, 1, C]
        return functional_call(self._frame_net[0], weights, (x, timestep, y, mask))

    def training_step(self, batch: tuple[Tensor, list[str], Tensor], _) -> Tensor:
        x0, texts, frame = batch
        y, mask = self.captions(texts)
        timestep = torch.randint(0, 1000, (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        x = self.schedule.q_sample(x0, timestep, noise)
        eps, v = self.denoise(x, timestep, y, mask, frame).chunk(2, dim=1)
        error = (self._weight(timestep) * F.mse_loss(eps, noise, reduction="none")).mean()
        bound = self.variance_bound(x0, x, timestep, eps.detach(), v).mean()
        self.log_dict({"loss": error + bound, "error": error, "bound": bound}, prog_bar=True)
        return error + bound

    def _weight(self, timestep: Tensor) -> Tensor:
        """1 / abar up to 1000, [B, 1, 1, 1, 1]: the error of the velocity (Salimans and Ho, 2022), as good as even
        over timesteps.

        Noise is easiest to predict where there is most of it, yet there the content is decided: without the weight a
        short training learns textures long before it listens to words.
        """
        weight = self.schedule.train_alphas_cumprod[timestep.cpu()].reciprocal().clamp(max=MAX_WEIGHT)
        return weight.float().to(self.device).view(-1, 1, 1, 1, 1)

    def captions(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Features [B, 1, L, D] with null captions mixed in, and the mask [B, L], which a null caption shares."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").to(self.device)
        y = self.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        null = torch.rand(len(texts), 1, 1, device=self.device) < NULL_SHARE
        return torch.where(null, self.net.y_embedder.y_embedding, y)[:, None], tokens.attention_mask

    def variance_bound(self, x0: Tensor, x: Tensor, timestep: Tensor, eps: Tensor, v: Tensor) -> Tensor:
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
        """Muon for the matrices of the blocks, AdamW for all else.

        Muon (Jordan et al., 2024) orthogonalizes the updates of matrices; the step sizes are AdamW's. In the same
        number of steps the error with a wrong caption, relative to that with the right one, grew further with it.
        """
        muon = [p for name, p in self.named_parameters() if _is_block_matrix(name, p)]
        adamw = [p for name, p in self.named_parameters() if not _is_block_matrix(name, p)]
        optimizer = Muon(
            [{"params": muon}, {"params": adamw, "use_fallback": True}],
            lr=self.hparams.lr,
            nesterov=True,
            betas=(0.9, 0.98),
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.lr, self.hparams.steps, pct_start=0.05, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def _look_at_neighbours(text: T5EncoderModel) -> None:
    """One head of the first layer begins with the word before, one with the word behind.

    T5's own start is nearly blind to order, and a bag of words cannot tell "from left to right" from its opposite.
    """
    bias = text.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
    behind = len(bias) // 2  # buckets of the words behind begin here
    bias[1, 0] = bias[behind + 1, 1] = 4.0


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and "block" in name and not any(table in name for table in TABLES)
