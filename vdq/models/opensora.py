"""Open-Sora 1.0: T5 v1.1 XXL, the STDiT denoiser and Stable Diffusion's frame autoencoder.

The three are never on the device together: prompts are encoded first and the encoder is freed, then the denoiser
works, and the autoencoder is there only while a video is decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from vdq.errors import UserError
from vdq.installation import require
from vdq.models.base import RANDOM
from vdq.models.captions import CaptionEncoder
from vdq.models.checkpoint import files, load_denoiser
from vdq.models.guidance import Conditions
from vdq.models.stdit import STDiT
from vdq.models.stdit_model import STDiTModel
from vdq.sources import Source, check_unmoved, find_file, find_folder, identity, named_file, named_folder, sha256

DOWNSAMPLING = 8  # of the autoencoder, per side
SCALING_FACTOR = 0.18215
GIGABYTES = {"denoiser": 3.0, "autoencoder": 0.3, "text_encoder": 19.0}  # of the published files
POSITIVE = ("hidden_size", "depth", "num_heads", "caption_channels", "model_max_length", "in_channels")
LARGEST = 1 << 20
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class OpenSoraModel(STDiTModel):
    """Videos of ``num_frames`` frames of ``image_size`` (height, width) pixels.

    ``denoiser`` holds STDiT's dimensions; ``weights`` and ``revisions`` say where denoiser, autoencoder and
    text_encoder come from: a path, a Hugging Face repository (owner/name, for the denoiser owner/name/file), or
    "random". ``net`` takes the place of the denoiser, of which `weights_sha256` does not know. ``decode_frames`` frames
    are decoded at a time. Files are looked for, and fetched, when they are needed. Raises UserError for a size that
    does not split into patches and for weights that are neither a local path nor a name on the Hub.
    """

    batch_size = 1  # of 512 x 512 pixels; guidance doubles it
    unsigned = ("weights", "revisions", "cache", "decode_frames")

    def __init__(
        self,
        *,
        image_size: Sequence[int] = (512, 512),
        num_frames: int = 16,
        space_scale: float = 1.0,
        time_scale: float = 1.0,
        fps: int = 8,
        denoiser: dict[str, Any] | None = None,
        text_dtype: str = "fp32",
        decode_dtype: str = "fp32",
        decode_frames: int = 4,
        weights: dict[str, str],
        revisions: dict[str, str | None],
        cache: str = "runs/cache",
        net: nn.Module | None = None,
    ) -> None:
        require("Open-Sora's text encoder", "opensora", "bs4", "ftfy", "sentencepiece")
        multiple = 2 * DOWNSAMPLING
        if len(image_size) != 2 or any(type(side) is not int or side < 1 or side % multiple for side in image_size):
            raise UserError(f"model.image_size={list(image_size)} must be two multiples of {multiple}: height, width")
        if num_frames < 1 or decode_frames < 1:
            raise UserError(f"model.num_frames={num_frames} and model.decode_frames={decode_frames} must be >= 1")
        if fps < 1:
            raise UserError(f"model.fps={fps} must be at least 1")
        for name, value in {"space_scale": space_scale, "time_scale": time_scale}.items():
            if value <= 0:
                raise UserError(f"model.{name}={value} must be above 0")
        for name, value in (denoiser or {}).items():
            if name in POSITIVE and (type(value) is not int or not 1 <= value <= LARGEST):
                raise UserError(f"model.denoiser.{name}={value} must be an integer in 1..{LARGEST}")
        if decode_dtype not in DTYPES:
            raise UserError(f"model.decode_dtype={decode_dtype} must be one of {', '.join(DTYPES)}")
        height, width = (side // DOWNSAMPLING for side in image_size)
        self.latent_shape = (4, num_frames, height, width)
        self.fps, self.decode_dtype, self.decode_frames = fps, DTYPES[decode_dtype], decode_frames
        self.cache = Path(cache)
        self._dimensions = {
            **(denoiser or {}),
            "input_size": self.latent_shape[1:],
            "space_scale": space_scale,
            "time_scale": time_scale,
        }
        self._sources = {
            part: Source(f"model.weights.{part}", weights[part], revisions.get(part), GIGABYTES[part])
            for part in GIGABYTES
        }
        self._net = net
        for part, source in self._sources.items():
            if not self._given(part):
                (named_file if part == "denoiser" else named_folder)(source)
        try:
            structure = self.structure
        except ValueError as error:
            raise UserError(f"model.denoiser: {error}") from error
        self.captions = CaptionEncoder(
            source=self._sources["text_encoder"],
            dtype=text_dtype,
            max_length=structure.y_embedder.y_embedding.shape[0],
            width=structure.y_embedder.y_embedding.shape[1],
            cache=self.cache,
        )

    @property
    def random(self) -> bool:
        return any(source.value == RANDOM for source in self._sources.values())

    @cached_property
    def structure(self) -> STDiT:
        with torch.device("meta"):
            return STDiT(**self._dimensions)

    @cached_property
    def denoiser(self) -> nn.Module:
        if self._net is not None:
            return self._net
        path = self._paths["denoiser"]
        if path is None:
            return _random(lambda: STDiT(**self._dimensions))
        return load_denoiser(lambda: STDiT(**self._dimensions), path, self.cache)

    @cached_property
    def autoencoder(self) -> AutoencoderKL:
        path = self._paths["autoencoder"]
        return _random(_stable_diffusion) if path is None else _load_autoencoder(path, self._sources["autoencoder"])

    def prepare(self, prompts: list[str], device: torch.device | str) -> int:
        return self.captions.prepare(prompts, device)

    def encode(self, prompts: list[str]) -> Conditions:
        """T5 features of prepared prompts; the null caption is the denoiser's own."""
        y, mask = self.captions.features(prompts)
        return Conditions(y, self.denoiser.null_caption.to(y), mask)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 4, T, H/8, W/8] to uint8 [B, T, H, W, 3] on the CPU, frame by frame; rounded in fp32."""
        from vdq.models.stdit_pipeline import decode_latents

        self.autoencoder.to(latents.device, self.decode_dtype)
        videos = decode_latents(
            self.autoencoder, latents, scaling_factor=SCALING_FACTOR, frames_at_once=self.decode_frames
        )
        self.autoencoder.to("cpu")
        return videos

    def pipeline_parts(self) -> dict[str, Any]:
        """What STDiTModel says; the text encoder, 19 GB, is read unless it is random."""
        tokenizer, text_encoder = (None, None) if self.captions.random else self.captions.load()
        return {
            "vae": self.autoencoder,
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "scaling_factor": SCALING_FACTOR,
            "max_length": self.captions.max_length,
        }

    @property
    def companions(self) -> dict[str, str]:
        path = self._paths["autoencoder"]
        autoencoder = RANDOM if path is None else sha256(path, self.cache)
        return {"text_encoder": self.captions.identity, "autoencoder": autoencoder}

    @cached_property
    def weights_sha256(self) -> str:
        parts = [self._identity(part) for part in ("denoiser", "autoencoder")]
        return hashlib.sha256(" ".join([*parts, self.captions.identity]).encode()).hexdigest()

    def _identity(self, part: str) -> str:
        source = self._sources[part]
        if self._given(part):
            return RANDOM
        path = Path(source.value).expanduser()
        shards = files(path) if path.is_file() else []
        return " ".join(sha256(shard, self.cache) for shard in shards) or identity(source, self.cache)

    @cached_property
    def _paths(self) -> dict[str, Path | None]:
        """Of denoiser and autoencoder on this machine; None for random weights and for a denoiser that was given."""
        return {part: self._find(part) for part in ("denoiser", "autoencoder")}

    def _find(self, part: str) -> Path | None:
        source = self._sources[part]
        if self._given(part):
            return None
        path = find_file(source) if part == "denoiser" else find_folder(source, ["*.json", "*.safetensors"])
        check_unmoved(source, path, self.cache)
        return path

    def _given(self, part: str) -> bool:
        """Whether a part is not read from a file."""
        return self._sources[part].value == RANDOM or (part == "denoiser" and self._net is not None)

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenSoraModel:
        """Itself: its parts are never changed in place, and the denoiser is too large for copies nobody asked for."""
        return self


def _stable_diffusion() -> AutoencoderKL:
    """The structure of stabilityai/sd-vae-ft-ema."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    )


def _load_autoencoder(path: Path, source: Source) -> AutoencoderKL:
    try:
        net, loaded = AutoencoderKL.from_pretrained(path, output_loading_info=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source.field}={path} holds no AutoencoderKL ({str(error).splitlines()[0]})") from error
    wrong = sorted(map(str, [*loaded["missing_keys"], *loaded["unexpected_keys"], *loaded["mismatched_keys"]]))
    if wrong:
        raise UserError(f"{source.field}={path}: {len(wrong)} tensors do not fit AutoencoderKL, such as {wrong[0]}")
    return net.eval().requires_grad_(False)


def _random(build: Any) -> nn.Module:
    """The same random weights every time. No layer is left at zero, which would hide everything behind it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build()
        for parameter in net.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return net.eval().requires_grad_(False)
