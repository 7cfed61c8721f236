"""The facts of families whose pipelines are those of diffusers (vdq.models.family)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from vdq.models.family import Family, family_of, register

# Linears that make shifts, scales and gates of the timestep: small, sensitive, called once a block with a single token.
MODULATION = ("*.norm*.linear*", "*.adaln*", "*modulation*")
CLASSES = "diffusers.models.transformers"
Draw = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class PipelineFamily(Family):
    """A family of pipelines of diffusers.

    kept: patterns of linears that stay in full precision though `quantizable` names them. one_prompt: a call takes one
    prompt, as a text, and one generator. text: what the calls of
    `encode_prompt` return for one prompt, in order, from the transformer's configuration, a number of tokens, and a
    function that draws normal numbers of a shape: for work on structure and speed without a text encoder.
    """

    kept: tuple[str, ...] = MODULATION
    one_prompt: bool = False
    text: Callable[[dict[str, Any], int, Draw], list[tuple]] | None = None

    def is_quantizable(self, fqn: str) -> bool:
        return super().is_quantizable(fqn) and not any(fnmatchcase(fqn, pattern) for pattern in self.kept)


def facts_of(structure: nn.Module) -> Family:
    """The family of a transformer; of one that nobody has described, the linears of its blocks are quantizable, which
    are the modules in its own nn.ModuleLists.
    """
    kind = type(structure)
    blocks = [name for name, module in structure.named_children() if isinstance(module, nn.ModuleList)]
    return family_of(structure) or PipelineFamily(
        name=kind.__name__,
        denoisers=(f"{kind.__module__}.{kind.__qualname__}",),
        quantizable=tuple(f"{name}.*" for name in blocks),
        calls_a_step=None,
    )


def drawn_text(family: Family, config: dict[str, Any], length: int, prompt: str, dtype: torch.dtype) -> list[tuple]:
    """Random numbers in place of what the text encoders make of a prompt, always the same: `PipelineFamily.text`."""
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    return family.text(config, length, lambda *shape: torch.randn(shape, generator=generator).to(dtype))


def _two(config: dict[str, Any], length: int, draw: Draw) -> list[tuple]:
    width = config.get("text_dim") or config.get("text_embed_dim") or config["caption_channels"]
    return [(draw(1, length, width), draw(1, length, width))]


def _two_with_masks(config: dict[str, Any], length: int, draw: Draw) -> list[tuple]:
    ((text, null),) = _two(config, length, draw)
    mask = torch.ones(1, length, dtype=torch.long)
    return [(text, mask, null, mask)]


def _four(config: dict[str, Any], length: int, draw: Draw) -> list[tuple]:
    ((text, null),) = _two(config, length, draw)
    mask = torch.ones(1, length, dtype=torch.bool)
    return [(text, null, mask, mask)]


def _cosmos(config: dict[str, Any], length: int, draw: Draw) -> list[tuple]:
    """Cosmos 2.5 projects what all layers of its encoder give, side by side."""
    width = config["crossattn_proj_in_channels" if config["use_crossattn_projection"] else "text_embed_dim"]
    return [(draw(1, length, width), draw(1, length, width))]


def _kandinsky(config: dict[str, Any], length: int, draw: Draw) -> list[tuple]:
    ends = torch.tensor([0, length], dtype=torch.int32)
    return [(draw(1, length, config["in_text_dim"]), draw(1, config["in_text_dim2"]), ends) for _ in range(2)]


def _hunyuan(config: dict[str, Any], length: int, draw: Draw) -> list[tuple]:
    pooled = draw(1, config["pooled_projection_dim"])
    return [(draw(1, length, config["text_embed_dim"]), pooled, torch.ones(1, length, dtype=torch.long))]


def _hunyuan_1_5(config: dict[str, Any], length: int, draw: Draw) -> list[tuple]:
    """Two encoders, of 1000 and 256 tokens; the second is for quoted words, of which there are none."""
    first, second = torch.ones(1, 1000, dtype=torch.long), torch.zeros(1, 256, dtype=torch.long)
    glyphs = draw(1, 256, config["text_embed_2_dim"]) * 0
    return [(draw(1, 1000, config["text_embed_dim"]), first, glyphs, second) for _ in range(2)]


WAN = register(
    PipelineFamily(
        name="Wan",
        denoisers=(f"{CLASSES}.transformer_wan.WanTransformer3DModel",),
        quantizable=("blocks.*",),
        calls_a_step=2,
        text=_two,
    )
)
COGVIDEOX = register(
    PipelineFamily(
        name="CogVideoX",
        denoisers=(f"{CLASSES}.cogvideox_transformer_3d.CogVideoXTransformer3DModel",),
        quantizable=("transformer_blocks.*",),
        text=_two,
    )
)
LTX = register(
    PipelineFamily(
        name="LTX-Video",
        denoisers=(f"{CLASSES}.transformer_ltx.LTXVideoTransformer3DModel",),
        quantizable=("transformer_blocks.*",),
        text=_two_with_masks,
    )
)
HUNYUAN_VIDEO = register(
    PipelineFamily(
        name="HunyuanVideo",
        denoisers=(f"{CLASSES}.transformer_hunyuan_video.HunyuanVideoTransformer3DModel",),
        quantizable=("transformer_blocks.*", "single_transformer_blocks.*"),
        calls_a_step=None,  # two with true_cfg_scale and a negative prompt
        text=_hunyuan,
    )
)
LATTE = register(
    PipelineFamily(
        name="Latte",
        denoisers=(f"{CLASSES}.latte_transformer_3d.LatteTransformer3DModel",),
        quantizable=("transformer_blocks.*", "temporal_transformer_blocks.*"),
        text=_two,
    )
)
MOCHI = register(
    PipelineFamily(
        name="Mochi",
        denoisers=(f"{CLASSES}.transformer_mochi.MochiTransformer3DModel",),
        quantizable=("transformer_blocks.*",),
        text=_two_with_masks,
    )
)
ALLEGRO = register(
    PipelineFamily(
        name="Allegro",
        denoisers=(f"{CLASSES}.transformer_allegro.AllegroTransformer3DModel",),
        quantizable=("transformer_blocks.*",),
        text=_two_with_masks,
    )
)
HUNYUAN_VIDEO_1_5 = register(
    PipelineFamily(
        name="HunyuanVideo 1.5",
        denoisers=(f"{CLASSES}.transformer_hunyuan_video15.HunyuanVideo15Transformer3DModel",),
        quantizable=("transformer_blocks.*",),
        calls_a_step=2,
        text=_hunyuan_1_5,
    )
)
WAN_VACE = register(
    PipelineFamily(
        name="Wan VACE",
        denoisers=(f"{CLASSES}.transformer_wan_vace.WanVACETransformer3DModel",),
        quantizable=("blocks.*", "vace_blocks.*"),
        calls_a_step=2,
        one_prompt=True,
        text=_two,
    )
)
SKYREELS_V2 = register(
    PipelineFamily(
        name="SkyReels-V2",
        denoisers=(f"{CLASSES}.transformer_skyreels_v2.SkyReelsV2Transformer3DModel",),
        quantizable=("blocks.*",),
        calls_a_step=2,
        text=_two,
    )
)
CHRONOEDIT = register(
    PipelineFamily(
        name="ChronoEdit",
        denoisers=(f"{CLASSES}.transformer_chronoedit.ChronoEditTransformer3DModel",),
        quantizable=("blocks.*",),
        calls_a_step=2,
    )
)
ANYFLOW = register(
    PipelineFamily(
        name="AnyFlow",
        denoisers=(f"{CLASSES}.transformer_anyflow.AnyFlowTransformer3DModel",),
        quantizable=("blocks.*",),
        text=_two,
    )
)
COSMOS = register(
    PipelineFamily(
        name="Cosmos",
        denoisers=(f"{CLASSES}.transformer_cosmos.CosmosTransformer3DModel",),
        quantizable=("transformer_blocks.*",),
        calls_a_step=2,
        text=_cosmos,
    )
)
KANDINSKY_5 = register(
    PipelineFamily(
        name="Kandinsky 5",
        denoisers=(f"{CLASSES}.transformer_kandinsky.Kandinsky5Transformer3DModel",),
        quantizable=("visual_transformer_blocks.*",),  # those of the text see a few hundred tokens
        calls_a_step=2,
        text=_kandinsky,
    )
)
SANA_VIDEO = register(
    PipelineFamily(
        name="Sana-Video",
        denoisers=(f"{CLASSES}.transformer_sana_video.SanaVideoTransformer3DModel",),
        quantizable=("transformer_blocks.*",),
        text=_two_with_masks,
    )
)
MOTIF_VIDEO = register(
    PipelineFamily(
        name="Motif-Video",
        denoisers=(f"{CLASSES}.transformer_motif_video.MotifVideoTransformer3DModel",),
        quantizable=("transformer_blocks.*", "single_transformer_blocks.*"),
        calls_a_step=2,
        text=_four,
    )
)
EASYANIMATE = register(
    PipelineFamily(
        name="EasyAnimate",
        denoisers=(f"{CLASSES}.transformer_easyanimate.EasyAnimateTransformer3DModel",),
        quantizable=("transformer_blocks.*",),
        text=_four,
    )
)
