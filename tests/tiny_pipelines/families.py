"""One tiny pipeline of every family."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from torch import nn

from tests.tiny_pipelines.parts import (
    FAMILIES,
    KIN,
    TEXT,
    clip,
    family,
    hunyuan_vae,
    llama,
    qwen,
    t5,
    tokenizer,
    wan_parts,
)

HUNYUAN_SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "text_embed_dim": TEXT,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}
CALLS = {  # arguments of the pipelines that make a video small
    "wan": {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
    "wan2_2": {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
    "cogvideox": {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
    "ltx": {"height": 64, "width": 64, "num_frames": 9, "max_sequence_length": 16},
    "hunyuan_video": {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
    "latte": {"height": 16, "width": 16, "video_length": 2},
    "mochi": {"height": 32, "width": 32, "num_frames": 7, "max_sequence_length": 16},
    "allegro": {"height": 32, "width": 32, "num_frames": 8, "max_sequence_length": 16},
}
CALLS |= {f"{name}_i2v": CALLS[name] for name in ("wan", "cogvideox", "ltx")}
CALLS["hunyuan_video_1_5"] = {"height": 32, "width": 32, "num_frames": 5}
CALLS["hunyuan_video"]["prompt_template"] = {"template": "a video of {}", "crop_start": 0}


def build(name: str) -> diffusers.DiffusionPipeline:
    """The pipeline of that name in fp32, with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = (FAMILIES | KIN)[name]()
        if name in KIN:
            _draw_zeros(pipeline.transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw_zeros(transformer: nn.Module) -> None:
    """Gates that start at zero would leave blocks without effect."""
    for parameter in transformer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)


def save(name: str, folder: Path) -> Path:
    """Writes that pipeline as a folder that `from_pretrained` reads."""
    build(name).save_pretrained(folder)
    return folder


def loaded(folder: Path) -> diffusers.DiffusionPipeline:
    """The plain pipeline of a folder, its tensors copied: rounding depends on how a mapped file aligns them."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    for part in pipeline.components.values():
        for tensor in (*part.parameters(), *part.buffers()) if isinstance(part, nn.Module) else ():
            tensor.data = tensor.data.clone()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _wan_transformer(in_channels: int = 4) -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=4,
        text_dim=TEXT,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


@family
def wan() -> diffusers.WanPipeline:
    return diffusers.WanPipeline(transformer=_wan_transformer(), **wan_parts())


@family
def wan2_2() -> diffusers.WanPipeline:
    """Two experts."""
    experts = {"transformer": _wan_transformer(), "transformer_2": _wan_transformer()}
    return diffusers.WanPipeline(**experts, **wan_parts(), boundary_ratio=0.875)


@family
def wan_i2v() -> diffusers.WanImageToVideoPipeline:
    """Latents, mask and encoded image side by side; no image encoder, as Wan 2.2 has none."""
    return diffusers.WanImageToVideoPipeline(transformer=_wan_transformer(in_channels=12), **wan_parts())


@family
def cogvideox() -> diffusers.CogVideoXPipeline:
    return diffusers.CogVideoXPipeline(**_cogvideox_parts(in_channels=4))


@family
def cogvideox_i2v() -> diffusers.CogVideoXImageToVideoPipeline:
    return diffusers.CogVideoXImageToVideoPipeline(**_cogvideox_parts(in_channels=8))


def _cogvideox_parts(in_channels: int) -> dict[str, object]:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=TEXT,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=32,
        sample_width=32,
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "vae": vae,
        "transformer": transformer,
        "scheduler": diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0,
            timestep_spacing="trailing",
        ),
    }


@family
def ltx() -> diffusers.LTXPipeline:
    return diffusers.LTXPipeline(**ltx_parts())


@family
def ltx_i2v() -> diffusers.LTXImageToVideoPipeline:
    return diffusers.LTXImageToVideoPipeline(**ltx_parts())


def ltx_parts() -> dict[str, object]:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=TEXT,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    )
    parts = {"text_encoder": t5(), "tokenizer": tokenizer(), "transformer": transformer}
    return {"scheduler": scheduler, "vae": vae, **parts}


@family
def hunyuan_video() -> diffusers.HunyuanVideoPipeline:
    transformer = diffusers.HunyuanVideoTransformer3DModel(**HUNYUAN_SIZES)
    vae = hunyuan_vae()
    return diffusers.HunyuanVideoPipeline(
        text_encoder=llama(),
        tokenizer=tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip(),
        tokenizer_2=tokenizer(),
    )


@family
def latte() -> diffusers.LattePipeline:
    transformer = diffusers.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=2,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=TEXT,
        video_length=2,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
    )
    scheduler = diffusers.DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False)
    return diffusers.LattePipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, transformer=transformer, scheduler=scheduler
    )


@family
def mochi() -> diffusers.MochiPipeline:
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=TEXT,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return diffusers.MochiPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=transformer,
    )


@family
def allegro() -> diffusers.AllegroPipeline:
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=4,
        sample_height=4,
        sample_frames=2,
        caption_channels=TEXT,
    )
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    vae.enable_tiling()
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    return diffusers.AllegroPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, transformer=transformer, scheduler=scheduler
    )


@family
def hunyuan_video_1_5() -> diffusers.HunyuanVideo15Pipeline:
    """Its prompts have 1000 tokens and 729 of an image whatever the size."""
    return diffusers.HunyuanVideo15Pipeline(**hunyuan_video_1_5_parts(task_type="t2v"))


def hunyuan_video_1_5_parts(**settings: object) -> dict[str, object]:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=TEXT,
        text_embed_2_dim=TEXT,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
        **settings,
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(32, 32, 32, 32, 32), layers_per_block=1
    )
    return {
        "text_encoder": qwen(),
        "tokenizer": tokenizer("{{ messages[1]['content'] }}"),
        "transformer": transformer,
        "vae": vae,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        "text_encoder_2": t5(),
        "tokenizer_2": tokenizer(),
        "guider": diffusers.ClassifierFreeGuidance(),
    }
