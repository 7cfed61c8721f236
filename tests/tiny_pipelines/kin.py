"""Tiny pipelines of further families, and of image-to-video pipelines of families."""

from __future__ import annotations

import diffusers
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.tiny_pipelines.families import HUNYUAN_SIZES, hunyuan_video_1_5_parts, ltx_parts
from tests.tiny_pipelines.parts import TEXT, clip, hunyuan_vae, llama, of_kin, qwen, t5, tokenizer, wan_vae

SMALL = {"height": 32, "width": 32, "num_frames": 5}
SHORT = SMALL | {"max_sequence_length": 16}
OF_IMAGE = {  # "~" stands for the image, of four tokens
    "template": "~{}",
    "crop_start": 1,
    "image_emb_len": 4,
    "image_emb_start": 0,
    "image_emb_end": 4,
}
CALLS = {
    "cosmos": SHORT | {"num_frames": 9},
    "cosmos_i2v": SHORT | {"num_frames": 9},
    "cosmos2": SHORT,
    "cosmos2_5": SHORT,
    "kandinsky5": SMALL | {"max_sequence_length": 1024},
    "kandinsky5_i2v": SMALL | {"max_sequence_length": 1024},
    "sana_video": {
        "height": 32,
        "width": 32,
        "frames": 5,
        "max_sequence_length": 16,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
    },
    "motif": SHORT,
    "easyanimate": SMALL | {"negative_prompt": ""},
    "ltx_condition": {"height": 64, "width": 64, "num_frames": 9, "max_sequence_length": 16},
    "hunyuan_video_i2v": SHORT | {"prompt_template": OF_IMAGE},
    "hunyuan_skyreels_i2v": SHORT | {"negative_prompt": "", "prompt_template": {"template": "{}", "crop_start": 0}},
    "hunyuan_video_1_5_i2v": {"num_frames": 5},
}
CALLS["sana_video_i2v"] = CALLS["sana_video"]
CHAT = "{{ messages[-1]['content'][0]['text'] }}"


def _cosmos_transformer(**sizes: object) -> nn.Module:
    settings = {
        "in_channels": 5,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "mlp_ratio": 2,
        "text_embed_dim": TEXT,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "patch_size": (1, 2, 2),
        "extra_pos_embed_type": None,
    }
    return diffusers.CosmosTransformer3DModel(**settings | sizes)


def _cosmos1(in_channels: int) -> dict[str, object]:
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=2,
        latents_mean=None,
        latents_std=None,
    )
    transformer = _cosmos_transformer(in_channels=in_channels, extra_pos_embed_type="learnable")
    scheduler = diffusers.EDMEulerScheduler(prediction_type="epsilon", sigma_schedule="karras", sigma_data=0.5)
    parts = {"text_encoder": t5(), "tokenizer": tokenizer(), "transformer": transformer}
    return parts | {"vae": vae, "scheduler": scheduler}


@of_kin
def cosmos() -> diffusers.CosmosTextToWorldPipeline:
    """Two calls of the scheduler a step."""
    return diffusers.CosmosTextToWorldPipeline(**_cosmos1(in_channels=4))


@of_kin
def cosmos_i2v() -> diffusers.CosmosVideoToWorldPipeline:
    return diffusers.CosmosVideoToWorldPipeline(**_cosmos1(in_channels=5))


@of_kin
def cosmos2() -> diffusers.Cosmos2VideoToWorldPipeline:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    parts = {"text_encoder": t5(), "tokenizer": tokenizer(), "vae": wan_vae(), "scheduler": scheduler}
    return diffusers.Cosmos2VideoToWorldPipeline(transformer=_cosmos_transformer(), **parts)


@of_kin
def cosmos2_5() -> diffusers.Cosmos2_5_PredictBasePipeline:
    transformer = _cosmos_transformer(
        use_crossattn_projection=True,
        crossattn_proj_in_channels=4 * TEXT,  # of all layers of the text encoder
        encoder_hidden_states_channels=TEXT,
    )
    parts = {"text_encoder": qwen(), "tokenizer": tokenizer(CHAT), "vae": wan_vae()}
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return diffusers.Cosmos2_5_PredictBasePipeline(transformer=transformer, **parts, scheduler=scheduler)


def _kandinsky5(visual_cond: bool) -> dict[str, object]:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=TEXT,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        visual_cond=visual_cond,
    )
    return {
        "transformer": transformer,
        "vae": hunyuan_vae(),
        "text_encoder": qwen(),
        "tokenizer": tokenizer(),
        "text_encoder_2": clip(),
        "tokenizer_2": tokenizer(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


@of_kin
def kandinsky5() -> diffusers.Kandinsky5T2VPipeline:
    return diffusers.Kandinsky5T2VPipeline(**_kandinsky5(visual_cond=True))


@of_kin
def kandinsky5_i2v() -> diffusers.Kandinsky5I2VPipeline:
    return diffusers.Kandinsky5I2VPipeline(**_kandinsky5(visual_cond=True))


def _gemma2() -> nn.Module:
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=TEXT,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return Gemma2Model(config).eval()


def _sana_video() -> dict[str, object]:
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=TEXT,
        sample_size=30,
        rope_max_seq_len=32,
    )
    return {"tokenizer": tokenizer(), "text_encoder": _gemma2(), "vae": wan_vae(), "transformer": transformer}


@of_kin
def sana_video() -> diffusers.SanaVideoPipeline:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    return diffusers.SanaVideoPipeline(**_sana_video(), scheduler=scheduler)


@of_kin
def sana_video_i2v() -> diffusers.SanaImageToVideoPipeline:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=8.0)
    return diffusers.SanaImageToVideoPipeline(**_sana_video(), scheduler=scheduler)


@of_kin
def motif() -> diffusers.MotifVideoPipeline:
    transformer = diffusers.MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        text_embed_dim=TEXT,
        rope_axes_dim=(4, 6, 6),
    )
    return diffusers.MotifVideoPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=wan_vae(),
        text_encoder=t5(),  # its own is T5Gemma2's
        tokenizer=tokenizer(),
        transformer=transformer,
        guider=diffusers.ClassifierFreeGuidance(),
    )


@of_kin
def easyanimate() -> diffusers.EasyAnimatePipeline:
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=16,
        sample_height=16,
        num_layers=2,
        mmdit_layers=2,
        time_embed_dim=8,
        text_embed_dim=TEXT,
    )
    vae = diffusers.AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=[8, 8, 8, 8],
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    parts = {"text_encoder": qwen(), "tokenizer": tokenizer(CHAT), "vae": vae, "transformer": transformer}
    return diffusers.EasyAnimatePipeline(**parts, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


@of_kin
def ltx_condition() -> diffusers.LTXConditionPipeline:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.LTXConditionPipeline(**ltx_parts() | {"scheduler": scheduler})


@of_kin
def hunyuan_video_i2v() -> diffusers.HunyuanVideoImageToVideoPipeline:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        **HUNYUAN_SIZES | {"in_channels": 9}, image_condition_type="latent_concat"
    )
    text = LlamaConfig(
        vocab_size=300, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2
    )
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=8,
    )
    image_token = tokenizer().convert_tokens_to_ids("~")
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_token, pad_token_id=0, image_seq_length=4
    )
    size = {"height": 16, "width": 16}
    return diffusers.HunyuanVideoImageToVideoPipeline(
        text_encoder=LlavaForConditionalGeneration(config).eval(),
        tokenizer=tokenizer(),
        transformer=transformer,
        vae=hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip(),
        tokenizer_2=tokenizer(),
        image_processor=CLIPImageProcessor(size=size, crop_size=size),
    )


@of_kin
def hunyuan_skyreels_i2v() -> diffusers.HunyuanSkyreelsImageToVideoPipeline:
    """Two calls a step with a negative prompt, one without."""
    return diffusers.HunyuanSkyreelsImageToVideoPipeline(
        text_encoder=llama(),
        tokenizer=tokenizer(),
        transformer=diffusers.HunyuanVideoTransformer3DModel(**HUNYUAN_SIZES | {"in_channels": 8}),
        vae=hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip(),
        tokenizer_2=tokenizer(),
    )


@of_kin
def hunyuan_video_1_5_i2v() -> diffusers.HunyuanVideo15ImageToVideoPipeline:
    """The size of the video is that of the image, scaled to about 64 pixels a side."""
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=54, patch_size=2
    )
    return diffusers.HunyuanVideo15ImageToVideoPipeline(
        **hunyuan_video_1_5_parts(task_type="i2v", target_size=64),
        image_encoder=SiglipVisionModel(vision).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 54, "width": 54}),
    )
