"""The networks of the testbed's video model: library classes and the STDiT with small configurations."""

from __future__ import annotations

from diffusers import AutoencoderKL
from transformers import T5Config, T5EncoderModel

from vdq.models.shapes_tokenizer import MAX_LENGTH
from vdq.models.stdit import STDiT

LATENT_CHANNELS, FRAMES, LATENT_SIDE = 4, 16, 8
SIDE = 8 * LATENT_SIDE  # of a frame, in pixels
TEXT_WIDTH = 128


def build_autoencoder() -> AutoencoderKL:
    """Frame autoencoder: [N, 3, 64, 64] in -1..1 to latents [N, 4, 8, 8]."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def build_text_encoder(vocab_size: int) -> T5EncoderModel:
    """T5 v1.1 encoder with two layers: token ids [B, L] to features [B, L, 128]."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocab_size,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def build_denoiser(frames: int = FRAMES) -> STDiT:
    """STDiT of depth 6 and width 128 on latents [4, frames, 8, 8]: 256 tokens a video of 16 frames."""
    return STDiT(
        input_size=(frames, LATENT_SIDE, LATENT_SIDE),
        in_channels=LATENT_CHANNELS,
        hidden_size=128,
        depth=6,
        num_heads=4,
        caption_channels=TEXT_WIDTH,
        model_max_length=MAX_LENGTH,
    )
