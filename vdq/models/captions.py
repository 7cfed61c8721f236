"""Prompts to features of the T5 encoder as in Open-Sora 1.0, kept on disk.

A prompt is encoded once: the file of its features is named by the encoder, its precision, the token limit and the
cleaned text. The encoder, 4.8 B parameters, is loaded only when a prompt is new and is gone when ``prepare`` returns.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from pathlib import Path

import torch
from diffusers import PixArtAlphaPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from vdq.errors import UserError
from vdq.files import complete_or_nothing
from vdq.models.base import RANDOM
from vdq.sources import Source, find_folder, identity

log = logging.getLogger(__name__)
FILES = ["*.json", "*.model", "*.bin", "*.safetensors"]
VERSION = 1  # to be raised when the same text would give other features
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def clean(prompt: str) -> str:
    """The caption as the model was trained on it: diffusers' port of the cleaning, twice in a row as upstream."""
    for _ in range(2):
        prompt = PixArtAlphaPipeline._clean_caption(PixArtAlphaPipeline, prompt)
    return prompt


class CaptionEncoder:
    """T5 v1.1 encoder features [L, width] of cleaned prompts, at most L = ``max_length`` tokens.

    ``source`` names the encoder, or is "random": features are then drawn from a stream of the text's own, for work on
    structure and speed. ``dtype`` is fp32 (upstream) or bf16. Raises UserError for another dtype.
    """

    def __init__(self, *, source: Source, dtype: str, max_length: int, width: int, cache: Path) -> None:
        if dtype not in DTYPES:
            why = "; T5 overflows in fp16" if dtype == "fp16" else ""
            raise UserError(f"model.text_dtype={dtype} must be one of {', '.join(DTYPES)}{why}")
        self.source, self.dtype, self.max_length, self.width, self.cache = source, dtype, max_length, width, cache

    @property
    def random(self) -> bool:
        return self.source.value == RANDOM

    @property
    def identity(self) -> str:
        """What the features depend on beside the text: of a published encoder the pinned revision, of a local one the
        content.
        """
        if self.random:
            return RANDOM
        return f"{identity(self.source, self.cache)} {self.dtype} {self.max_length}"

    def prepare(self, prompts: list[str], device: torch.device | str) -> int:
        """Encodes on ``device`` the prompts whose features are not on disk yet; returns how many that were.

        Raises UserError when the encoder is needed and cannot be found or read.
        """
        new = [] if self.random else [text for text in dict.fromkeys(map(clean, prompts)) if not self._readable(text)]
        if not new:
            return 0
        tokenizer, encoder = self.load()
        encoder.to(device)
        too_long = [text for text in new if len(tokenizer(text).input_ids) > self.max_length]
        if too_long:
            log.warning(
                "text: %d prompts have more than %d tokens and are cut, such as %.60r",
                len(too_long),
                self.max_length,
                too_long[0],
            )
        for text in tqdm(new, desc="encoding prompts", unit="prompt"):
            with complete_or_nothing(self._path(text)) as partial:
                save_file({"features": self._encode(tokenizer, encoder, text)}, partial)
        del encoder
        gc.collect()
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
        return len(new)

    def features(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """y [n, 1, L, width] and mask [n, L] long of prepared prompts, zero where padded.

        Upstream keeps what T5 puts at padded places; the mask removes it before it is used.
        """
        rows = [self._row(clean(prompt)) for prompt in prompts]
        y = torch.stack([pad(row, (0, 0, 0, self.max_length - len(row))) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return y[:, None], (torch.arange(self.max_length) < lengths[:, None]).long()

    @torch.inference_mode()
    def _encode(self, tokenizer: PreTrainedTokenizerBase, encoder: T5EncoderModel, text: str) -> Tensor:
        """Features [tokens, width] of one text. Alone, so that they do not depend on what else is encoded."""
        tokens = tokenizer(
            text, max_length=self.max_length, padding="max_length", truncation=True, return_tensors="pt"
        ).to(encoder.device)
        output = encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state[0]
        return output[: int(tokens.attention_mask.sum())].cpu().contiguous()

    def load(self) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
        """Tokenizer and encoder, which are fetched if they are not on this machine. Raises UserError when they cannot
        be found, are damaged or do not fit the denoiser.
        """
        field, folder = self.source.field, find_folder(self.source, FILES)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            encoder, loaded = T5EncoderModel.from_pretrained(folder, dtype=DTYPES[self.dtype], output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{field}={folder} holds no T5 encoder with its tokenizer ({reason})") from error
        wrong = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
        if wrong:
            raise UserError(f"{field}={folder} lacks or misshapes {len(wrong)} tensors, such as {wrong[0]}")
        if encoder.config.d_model != self.width:
            raise UserError(
                f"{field}={folder} has features of width {encoder.config.d_model}; "
                f"the denoiser's caption_channels={self.width} must be equal"
            )
        return tokenizer, encoder.eval().requires_grad_(False)

    def _row(self, text: str) -> Tensor:
        if not self.random:
            return load_file(self._path(text))["features"]
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
        length = min(len(text.split()) + 1, self.max_length)
        return torch.randn(length, self.width, generator=generator, dtype=torch.float32)

    def _readable(self, text: str) -> bool:
        try:
            return bool(load_file(self._path(text)))
        except (OSError, SafetensorError):  # not there or damaged: encoded again either way
            return False

    def _path(self, text: str) -> Path:
        digest = hashlib.sha256(f"{self.identity} {VERSION}\n{text}".encode()).hexdigest()
        return self.cache / "captions" / f"{digest[:32]}.safetensors"
