"""The small CLIP as an encoder for the CLIP metrics."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from vdq.errors import UserError
from vdq.models.shapes_tokenizer import build_tokenizer
from vdq.shapes.nets import build_clip
from vdq.shapes.render import SIDE
from vdq.sources import digest

WEIGHTS = Path(__file__).parent / "weights" / "clip.safetensors"


class ShapesClip(nn.Module):
    """Judge of the testbed: frames of 64 x 64 pixels and captions to vectors of width 64."""

    unsigned = ("weights",)
    name = "shapes-clip"
    frame_size = (SIDE, SIDE)

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        path = Path(weights or WEIGHTS)
        if not path.is_file():
            raise UserError(
                f"metrics.clip.encoder.weights={path} is not a file; train it with `python -m vdq.shapes.train clip`"
            )
        self.sha256 = digest(path)
        self.tokenizer = build_tokenizer()
        self.net = build_clip(len(self.tokenizer)).eval().requires_grad_(False)
        try:
            load_model(self.net, path)
        except (SafetensorError, RuntimeError) as error:  # no such file, other tensors
            reason = str(error).splitlines()[0]
            raise UserError(
                f"metrics.clip.encoder.weights={path} holds no weights of {self.name} ({reason})"
            ) from error

    @torch.inference_mode()
    def encode_images(self, frames: Tensor) -> Tensor:
        """uint8 [N, 64, 64, 3] to float32 [N, 64], not normalised."""
        return self.net.encode_image(frames.movedim(-1, 1).float() / 127.5 - 1)

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Captions to float32 [n, 64], not normalised."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.net.encode_text(tokens.to(self.net.logit_scale.device))

    def truncated(self, texts: list[str]) -> int:
        """How many captions are longer than the text tower reads."""
        lengths = self.tokenizer(texts, return_length=True).length
        return sum(length > self.tokenizer.model_max_length for length in lengths)
