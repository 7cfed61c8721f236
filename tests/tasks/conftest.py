"""A video model so small that sampling it takes milliseconds."""

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vdq.models.frames import to_uint8
from vdq.models.guidance import Conditions
from vdq.models.stdit import STDiT
from vdq.models.stdit_model import STDiTModel


class TinyModel(nn.Module, STDiTModel):
    latent_shape = (4, 2, 4, 4)
    fps = 4

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.denoiser = STDiT(
                input_size=(2, 4, 4), hidden_size=32, depth=1, num_heads=2, caption_channels=8, model_max_length=6
            )
            for parameter in self.denoiser.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.1)
        self.requires_grad_(False)

    def encode(self, prompts: list[str]) -> Conditions:
        y = torch.tensor([[len(p), p.count("a"), *[1] * 6] for p in prompts], dtype=torch.float32)
        return Conditions(y[:, None, None].expand(-1, 1, 6, 8).contiguous(), torch.zeros(6, 8), None)

    def decode(self, latents: Tensor) -> Tensor:
        return to_uint8(latents[:, :3].repeat_interleave(4, -1).repeat_interleave(4, -2).tanh())

    def pipeline_parts(self) -> dict:
        return {}

    @property
    def weights_sha256(self) -> str:
        return "0" * 64


@pytest.fixture
def model() -> TinyModel:
    return TinyModel()


@pytest.fixture
def trainer() -> pl.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", devices=1, **off)
