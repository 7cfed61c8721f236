"""The small networks that score the testbed's videos: library classes with small configurations."""

from __future__ import annotations

from vdq.clip_library import open_clip
from vdq.metrics.dover.convnext import ConvNeXt3D
from vdq.metrics.dover.model import Dover
from vdq.metrics.dover.swin import SwinTransformer3D
from vdq.metrics.dover.views import AestheticView, TechnicalView
from vdq.models.shapes_tokenizer import MAX_LENGTH
from vdq.shapes.render import FRAMES, SIDE

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
