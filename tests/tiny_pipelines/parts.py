"""What tiny pipelines are made of: text encoders, autoencoders, and where pipelines are registered."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT = 16  # features of the text encoder
Build = Callable[[], diffusers.DiffusionPipeline]
FAMILIES: dict[str, Build] = {}
KIN: dict[str, Build] = {}


def family(build_it: Build) -> Build:
    FAMILIES[build_it.__name__] = build_it
    return build_it


def of_kin(build_it: Build) -> Build:
    KIN[build_it.__name__] = build_it
    return build_it


def tokenizer(chat: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte. chat: the template of its chats."""
    ids = {character: number + 2 for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, **ids}, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Split("", "isolated")]
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special, model_max_length=64, chat_template=chat)


def t5(config: type = T5Config, model: type = T5EncoderModel) -> nn.Module:
    return model(config(vocab_size=300, d_model=TEXT, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()


def llama() -> nn.Module:
    return LlamaModel(
        LlamaConfig(
            vocab_size=300,
            hidden_size=TEXT,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    ).eval()


def clip() -> nn.Module:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=300,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=8,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=0,
        )
    ).eval()


def qwen() -> nn.Module:
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=300,
            hidden_size=TEXT,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
        )
    ).eval()


def wan_parts() -> dict[str, object]:
    """All that Wan's pipelines and their kin have beside the transformer."""
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(UMT5Config, UMT5EncoderModel),
        "vae": wan_vae(),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
    }


def wan_vae() -> nn.Module:
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )


def hunyuan_vae() -> nn.Module:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
    )
