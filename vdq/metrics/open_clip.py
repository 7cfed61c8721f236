"""The CLIP of the paper's metrics: open_clip's ViT-B-32 with OpenAI's weights, and two ways to make its input.

Published with QuickGELU, so the plain name ``ViT-B-32`` would build another network. `evalcrafter` is how the paper's
numbers were most likely made (EvalCrafter 1275bda0 feeds raw grey levels), `standard` is what CLIP was trained on.
Values of the two cannot be compared.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vdq.clip_library import open_clip
from vdq.errors import UserError
from vdq.sources import Source, find_file, sha256

log = logging.getLogger(__name__)
ARCHITECTURE = "ViT-B-32-quickgelu"
FIELD = "metrics.clip.encoder.weights"
PREPROCESSINGS = ("evalcrafter", "standard")
PUBLISHED = f"{ARCHITECTURE} openai"
# SHA-256 of the files that hold OpenAI's weights.
FILES = {
    "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",  # timm's open_clip_model.safetensors
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",  # OpenAI's ViT-B-32.pt
}
SIDE = 224


class OpenClip(nn.Module):
    """A `vdq.metrics.clip.ClipEncoder`: frames and prompts to float32 vectors of width 512, not normalised.

    `preprocessing` is one of

    - `evalcrafter`: grey levels 0..255 as they are, squashed to 224 x 224 without antialiasing;
    - `standard`: open_clip's own transform: bicubic to a shortest edge of 224, centre crop, mean and deviation of CLIP.

    `weights` is a local file or owner/name/file of a Hugging Face repository at `revision`. A file other than the
    published ones carries its own name in every result, so that its values do not stand beside the paper's. Raises
    UserError for another preprocessing, or for a file that cannot be had or is no such CLIP.
    """

    unsigned = ("weights", "revision", "cache")
    frame_size = None

    def __init__(self, weights: str, revision: str | None, cache: str, preprocessing: str = "evalcrafter") -> None:
        super().__init__()
        if preprocessing not in PREPROCESSINGS:
            raise UserError(f"preprocessing={preprocessing} is not known; allowed: {', '.join(PREPROCESSINGS)}")
        path = find_file(Source(FIELD, weights, revision, 0.6))
        self.net = _load(path)
        self.sha256 = sha256(path, Path(cache))  # later, so that a wrong file leaves nothing in the cache
        self.name = PUBLISHED if self.sha256 in FILES else f"{ARCHITECTURE} {path.name}"
        if self.name != PUBLISHED:
            log.warning("%s=%s is not OpenAI's published file (SHA-256 %s)", FIELD, weights, self.sha256)
        self.preprocessing = preprocessing
        self.tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
        self.transform = open_clip.image_transform(
            SIDE, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
        )

    @torch.inference_mode()
    def encode_images(self, frames: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] to [N, 512]."""
        return self.net.encode_image(getattr(self, f"_{self.preprocessing}")(frames))

    @torch.inference_mode()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """n prompts to [n, 512]; of a long one the first 75 tokens count."""
        return self.net.encode_text(self.tokenizer(prompts).to(self.net.logit_scale.device))

    def truncated(self, prompts: list[str]) -> int:
        """How many prompts have more tokens than CLIP reads."""
        limit = self.net.context_length - 2  # start and end
        return sum(len(self.tokenizer.encode(prompt)) > limit for prompt in prompts)

    def _evalcrafter(self, frames: Tensor) -> Tensor:
        return F.interpolate(frames.movedim(-1, 1).float(), (SIDE, SIDE), mode="bilinear")

    def _standard(self, frames: Tensor) -> Tensor:
        images = [Image.fromarray(frame) for frame in frames.cpu().numpy()]
        return torch.stack([self.transform(image) for image in images]).to(frames.device)


@lru_cache(maxsize=1)
def _load(path: Path) -> nn.Module:
    """One network for both preprocessings."""
    try:
        net = open_clip.create_model(ARCHITECTURE, pretrained=str(path))
    except Exception as error:  # whatever the library raises on a file that is none of its checkpoints
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{FIELD}={path} is not a checkpoint of {ARCHITECTURE} ({reason})") from error
    if not any(isinstance(module, open_clip.transformer.QuickGELU) for module in net.visual.modules()):
        raise AssertionError("open_clip built the network without QuickGELU")
    return net.eval().requires_grad_(False)
