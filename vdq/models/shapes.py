"""The testbed's video model: the small text encoder, autoencoder and STDiT that ship with this repository."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from vdq.errors import UserError
from vdq.models.guidance import Conditions
from vdq.models.shapes_nets import (
    FRAMES,
    LATENT_CHANNELS,
    LATENT_SIDE,
    build_autoencoder,
    build_denoiser,
    build_text_encoder,
)
from vdq.models.shapes_tokenizer import MAX_LENGTH, build_tokenizer, unknown_words
from vdq.models.stdit_model import STDiTModel
from vdq.sources import digest

SHOWN = 10  # unknown words that are listed
WEIGHTS = Path(__file__).parents[1] / "shapes" / "weights"


class ShapesModel(nn.Module, STDiTModel):
    """16 frames of 64 x 64 pixels from a caption of one moving shape; 256 tokens a video.

    ``weights`` is a folder as `python -m vdq.shapes.train` makes it, None the one that ships with the package. ``net``
    takes the place of its denoiser, of which `weights_sha256` does not know. Raises UserError when a file is missing.
    """

    unsigned = ("weights",)
    latent_shape = (LATENT_CHANNELS, FRAMES, LATENT_SIDE, LATENT_SIDE)
    fps = 8

    def __init__(self, weights: str | Path | None = None, *, net: nn.Module | None = None) -> None:
        super().__init__()
        self.weights = Path(weights or WEIGHTS)
        self.scaling_factor = json.loads(self._file("latents.json").read_text())["scaling_factor"]
        self.tokenizer = build_tokenizer()
        self.text_encoder = self._load(build_text_encoder(len(self.tokenizer)), "text_encoder")
        self.autoencoder = self._load(build_autoencoder(), "autoencoder")
        self.denoiser = self._load(build_denoiser(), "denoiser") if net is None else net

    def remarks(self, prompts: list[str]) -> list[str]:
        """Which words it does not know, and which prompts are longer than it reads."""
        unknown = {prompt: words for prompt in prompts if (words := unknown_words(self.tokenizer, prompt))}
        cut = [prompt for prompt in prompts if len(self.tokenizer(prompt, verbose=False).input_ids) > MAX_LENGTH]
        found = []
        if unknown:
            words = sorted(set().union(*unknown.values()))
            found.append(
                f"{len(unknown)} of {len(prompts)} prompts have words that the testbed does not know and reads as "
                f"nothing: {', '.join(words[:SHOWN])}{', ...' if len(words) > SHOWN else ''}"
            )
        if cut:
            found.append(f"{len(cut)} of {len(prompts)} prompts are cut to {MAX_LENGTH} words and marks: {cut[0]!r}")
        return found

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Conditions:
        """Features of width 128 of at most 24 tokens a prompt; words that the testbed does not know become [UNK]."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        tokens = tokens.to(self.text_encoder.device)
        y = self.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return Conditions(y[:, None], self.denoiser.null_caption, tokens.attention_mask)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 4, 16, 8, 8] to uint8 [B, 16, 64, 64, 3], frame by frame.

        The frames of one video go together, so that their rounding does not depend on what else is in the batch.
        """
        from vdq.models.stdit_pipeline import decode_latents

        return decode_latents(self.autoencoder, latents, scaling_factor=self.scaling_factor)

    def pipeline_parts(self) -> dict[str, Any]:
        return {
            "vae": self.autoencoder,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "scaling_factor": self.scaling_factor,
            "max_length": MAX_LENGTH,
            "clean_captions": False,
        }

    @property
    def companions(self) -> dict[str, str]:
        parts = ("text_encoder", "autoencoder")
        digests = {part: digest(self._file(f"{part}.safetensors")) for part in parts}
        return digests | {"scaling_factor": repr(self.scaling_factor)}

    @cached_property
    def weights_sha256(self) -> str:
        total = hashlib.sha256(repr(self.scaling_factor).encode())
        for name in ("text_encoder", "autoencoder", "denoiser"):
            total.update(self._file(f"{name}.safetensors").read_bytes())
        return total.hexdigest()

    def _load(self, net: nn.Module, name: str) -> nn.Module:
        path = self._file(f"{name}.safetensors")
        try:
            load_model(net, path)
        except (SafetensorError, RuntimeError, OSError) as error:  # no such file, other tensors, not readable
            reason = str(error).splitlines()[0]
            raise UserError(f"model.weights={self.weights}: {path.name} holds no {name} of it ({reason})") from error
        return net.eval().requires_grad_(False)

    def _file(self, name: str) -> Path:
        path = self.weights / name
        if not path.is_file():
            raise UserError(
                f"model.weights={self.weights} has no file {name}; train it with `python -m vdq.shapes.train`"
            )
        return path
