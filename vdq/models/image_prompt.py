"""A prompt with the image that its video begins with, for models that make videos of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from vdq.errors import UserError
from vdq.sources import digest


class ImagePrompt(str):
    """A text that also names an image file. It counts as a text everywhere, and models that take images look at
    `image`; `sha256` tells images of one name apart. Raises UserError for a file that is no image.
    """

    image: Path
    sha256: str

    def __new__(cls, text: str, image: Path) -> ImagePrompt:
        self = super().__new__(cls, text)
        self.image = Path(image)
        try:
            with Image.open(self.image) as opened:
                opened.verify()
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise UserError(f"image {image} of prompt {text!r} cannot be read as an image") from error
        self.sha256 = digest(self.image)
        return self

    def __getnewargs__(self) -> tuple[str, Path]:
        return str(self), self.image

    def opened(self) -> Image.Image:
        """The image in RGB."""
        with Image.open(self.image) as opened:
            return opened.convert("RGB")


def described(prompts: list[str]) -> list[Any]:
    """What videos depend on of these prompts: texts, each with the digest of its image if it has one."""
    return [[str(p), p.sha256] if isinstance(p, ImagePrompt) else p for p in prompts]
