"""The testbed's small networks: library classes and the STDiT with small configurations."""

from __future__ import annotations

from diffusers import AutoencoderKL
from transformers import T5Config, T5EncoderModel

from vdq.clip_library import open_clip
from vdq.metrics.dover.convnext import ConvNeXt3D
from vdq.metrics.dover.model import Dover
from vdq.metrics.dover.swin import SwinTransformer3D
from vdq.metrics.dover.views import AestheticView, TechnicalView
from vdq.models.stdit import STDiT
from vdq.shapes.render import FRAMES, SIDE
from vdq.shapes.tokenizer import MAX_LENGTH

LATENT_CHANNELS, LATENT_SIDE = 4, SIDE // 8
TEXT_WIDTH = 128
# The mosaic's 4 x 4 fragments lie side by side as in the video, whose every frame it shows.
TECHNICAL = TechnicalView(
    clips=1,
    clip_frames=FRAMES,
    frame_interval=1,
    fragments_h=4,
    fragments_w=4,
    fragment_h=SIDE // 4,
    fragment_w=SIDE // 4,
    aligned=FRAMES,
)
AESTHETIC = AestheticView(clip_frames=8, time_fragments=8, frame_interval=1, height=SIDE, width=SIDE)


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


def build_clip(vocab_size: int) -> open_clip.CLIP:
    """open_clip's CLIP with a small vision transformer (64 x 64 pixels, patch 8) and a small text tower."""
    return open_clip.CLIP(
        embed_dim=64,
        vision_cfg=open_clip.CLIPVisionCfg(layers=4, width=128, head_width=32, patch_size=8, image_size=SIDE),
        text_cfg=open_clip.CLIPTextCfg(context_length=MAX_LENGTH, vocab_size=vocab_size, width=128, heads=4, layers=2),
    )


def build_dover() -> Dover:
    """DOVER's classes in small, for the views TECHNICAL and AESTHETIC of videos of 64 x 64 pixels."""
    technical = SwinTransformer3D(
        embed_dim=24, depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=(8, 4, 4), frag_biases=(True, True, False)
    )
    return Dover(technical, ConvNeXt3D(depths=(2, 2, 2), dims=(24, 48, 96)), hidden_channels=32, name="shapes-dover")
