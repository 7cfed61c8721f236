"""DOVER and DOVER-Mobile: two backbones with a regression head each, and their published weights.

State-dict keys and their order equal those of the published files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vdq.errors import UserError
from vdq.metrics.dover.convnext import ConvNeXt3D, ConvNeXtV23D
from vdq.metrics.dover.swin import SwinTransformer3D

BRANCHES = ("technical", "aesthetic")
RANDOM = "random"


class VQAHead(nn.Module):
    """Score of each position: two linear layers over the channels with an exact GELU between them."""

    def __init__(self, in_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc_hid = nn.Conv3d(in_channels, hidden_channels, kernel_size=1)
        self.fc_last = nn.Conv3d(hidden_channels, 1, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, 1, T, H, W]."""
        return self.fc_last(F.gelu(self.fc_hid(features)))


class Dover(nn.Module):
    """The two branches, addressed by name: "technical" sees fragments, "aesthetic" small whole frames.

    A backbone takes normalised clips [B, 3, T, H, W], gives features [B, C, T', H', W'] and has C as `out_channels`.

    Attributes:
        name: model, as a table should call it.
        sha256: hash of the weights file, "random" until one is loaded; `published.dover` sets it.
    """

    def __init__(
        self, technical_backbone: nn.Module, aesthetic_backbone: nn.Module, *, hidden_channels: int, name: str
    ) -> None:
        super().__init__()
        self.name, self.sha256 = name, RANDOM
        self.technical_backbone = technical_backbone
        self.aesthetic_backbone = aesthetic_backbone
        self.technical_head = VQAHead(technical_backbone.out_channels, hidden_channels)
        self.aesthetic_head = VQAHead(aesthetic_backbone.out_channels, hidden_channels)

    def score_map(self, view: Tensor, branch: str) -> Tensor:
        """Clips of a view, normalised [B, 3, T, H, W] -> raw score of every position [B, 1, T', H', W'].

        Raises UserError on another branch than "technical" and "aesthetic".
        """
        if branch not in BRANCHES:
            raise UserError(f"branch={branch!r} must be one of {', '.join(BRANCHES)}")
        features = getattr(self, f"{branch}_backbone")(view)
        return getattr(self, f"{branch}_head")(features)

    def forward(self, view: Tensor, branch: str) -> Tensor:
        """Clips of a view, normalised [B, 3, T, H, W] -> raw score of each clip [B].

        Positions are averaged behind the head: it is not linear, and the mean feature has another score.
        """
        return self.score_map(view, branch).flatten(1).mean(1)

    def load_published(self, path: str | Path) -> Self:
        """Takes the weights of a file, .safetensors or of torch.save, its tensors flat or under "state_dict".

        Raises UserError when the file is damaged, wants to run code, or does not hold exactly the model's tensors.
        """
        found = _read(Path(path))
        self._check(found, path)
        self.load_state_dict(found)
        return self

    def _check(self, found: dict[str, Any], path: str | Path) -> None:
        expected = self.state_dict()
        constant = expected.keys() - dict(self.named_parameters()).keys()
        shared = {key: value for key, value in expected.items() if key in found}
        wrong = [key for key, value in shared.items() if not _fits(found[key], value, key in constant)]
        faults = {
            "missing": [key for key in expected if key not in found],
            "unexpected": [str(key) for key in found if key not in expected],
            "of another shape or content": wrong,
        }
        words = [f"{len(keys)} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items() if keys]
        if words:
            raise UserError(
                f"{path} must hold the {len(expected)} tensors of {self.name}, but {_resemblance(found)}"
                f"{', '.join(words)}"
            )


def build_dover() -> Dover:
    """DOVER as published, 56.2 M parameters, with random weights."""
    return Dover(SwinTransformer3D(), ConvNeXt3D(), hidden_channels=64, name="DOVER").eval()


def build_dover_mobile() -> Dover:
    """DOVER-Mobile as published, 10.7 M parameters, with random weights."""
    return Dover(ConvNeXtV23D(), ConvNeXtV23D(), hidden_channels=32, name="DOVER-Mobile").eval()


def _read(path: Path) -> dict[str, Any]:
    """Content of a weights file, unwrapped. Raises UserError when it cannot be read as one."""
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails anywhere in the readers, with almost any type
        raise UserError(
            f"{path} must be a whole .safetensors file or one of torch.save with nothing but tensors, and no code is "
            f"run from it; reading it failed with {type(error).__name__}"
        ) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a dictionary of names to tensors, not a {type(content).__name__}")
    return content


def _fits(found: Any, expected: Tensor, constant: bool) -> bool:
    """Whether `found` can take the place of `expected`; a constant of the architecture must be equal."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return bool((found == expected.cpu()).all()) if constant else found.is_floating_point()


def _resemblance(found: dict[str, Any]) -> str:
    """What a file that does not fit seems to be."""
    names = {str(key) for key in found}
    if names and all("_head." in name for name in names):
        return "holds heads without their backbones: "
    if any(name.startswith("technical_backbone.patch_embed.") for name in names):
        return "looks like DOVER: "
    if any(name.startswith("technical_backbone.downsample_layers.") for name in names):
        return "looks like DOVER-Mobile: "
    return "has "
