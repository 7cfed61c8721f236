"""Tiny pipelines that share Wan's autoencoder and text encoder."""

from __future__ import annotations

import diffusers
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests.tiny_pipelines.parts import TEXT, of_kin, wan_parts

SMALL = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
CALLS = dict.fromkeys(("skyreels_v2", "wan_vace", "anyflow"), SMALL)
CALLS |= dict.fromkeys(
    ("skyreels_v2_i2v", "chronoedit"), SMALL | {"max_sequence_length": 512}
)  # before come the image's
SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
IMAGE = 4  # features of the image encoder


def _image_encoder() -> dict[str, object]:
    config = CLIPVisionConfig(
        hidden_size=IMAGE,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=IMAGE,
    )
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(size=size, crop_size=size)
    return {"image_encoder": CLIPVisionModel(config).eval(), "image_processor": processor}


def _of_images(kind: type, **sizes: object) -> nn.Module:
    return kind(**SIZES | {"in_channels": 12, "image_dim": IMAGE, "added_kv_proj_dim": 24} | sizes)


@of_kin
def skyreels_v2() -> diffusers.SkyReelsV2Pipeline:
    return diffusers.SkyReelsV2Pipeline(transformer=diffusers.SkyReelsV2Transformer3DModel(**SIZES), **wan_parts())


@of_kin
def skyreels_v2_i2v() -> diffusers.SkyReelsV2ImageToVideoPipeline:
    transformer = _of_images(diffusers.SkyReelsV2Transformer3DModel)
    return diffusers.SkyReelsV2ImageToVideoPipeline(transformer=transformer, **wan_parts(), **_image_encoder())


@of_kin
def wan_vace() -> diffusers.WanVACEPipeline:
    """Without a video to follow, as it is called then."""
    transformer = diffusers.WanVACETransformer3DModel(**SIZES, vace_layers=[0], vace_in_channels=72)
    return diffusers.WanVACEPipeline(transformer=transformer, **wan_parts())


@of_kin
def chronoedit() -> diffusers.ChronoEditPipeline:
    transformer = _of_images(diffusers.ChronoEditTransformer3DModel)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    parts = wan_parts() | _image_encoder() | {"scheduler": scheduler}
    return diffusers.ChronoEditPipeline(transformer=transformer, **parts)


@of_kin
def anyflow() -> diffusers.AnyFlowPipeline:
    transformer = diffusers.AnyFlowTransformer3DModel(**SIZES)
    parts = wan_parts() | {"scheduler": diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)}
    return diffusers.AnyFlowPipeline(transformer=transformer, **parts)
