"""What a video model offers to the rest of the program. Nothing here knows of quantization."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RANDOM = "random"  # in place of a path: weights drawn at random


@dataclass(frozen=True)
class Conditions:
    """Encoded prompts: y [n, 1, L, D], the null caption [L, D], and mask [n, L] (non-zero where a token counts) or
    None.

    `len` is the number of prompts; slicing keeps the null caption. Raises ValueError when the shapes do not fit.
    """

    y: Tensor
    null: Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.y.dim() != 4 or self.y.shape[1] != 1 or self.y.shape[2:] != self.null.shape:
            raise ValueError(f"y {tuple(self.y.shape)} must be [n, 1, *null.shape], null is {tuple(self.null.shape)}")
        if self.mask is not None and self.mask.shape != (self.y.shape[0], self.y.shape[2]):
            raise ValueError(f"mask {tuple(self.mask.shape)} must be [{self.y.shape[0]}, {self.y.shape[2]}] as y")

    def __len__(self) -> int:
        return self.y.shape[0]

    def __getitem__(self, rows: slice) -> "Conditions":
        return Conditions(self.y[rows], self.null, None if self.mask is None else self.mask[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Conditions":
        """Copy on `device`; `dtype` is for y and null, the mask keeps its own."""
        mask = None if self.mask is None else self.mask.to(device)
        return Conditions(self.y.to(device, dtype), self.null.to(device, dtype), mask)


class VideoModel(ABC):
    """A denoiser with its prompt encoder and its latent decoder.

    A small model is an nn.Module as well, so that a Trainer moves all of it; a large one keeps its parts to itself and
    has one of them on the device at a time. denoiser(x [B, c, T, H, W], timestep [B], y [B, 1, L, D], mask) ->
    [B, 2c, T, H, W] fp32, noise estimate then variance logits; if it offers `prepare(y, mask)` and
    `prepare_timestep(timestep)`, what they return may stand for these inputs in several calls; if it offers
    `temporal_features(timesteps)` and `timestep_table(num_steps)`, they tell of what depends on the step alone, whose
    linears are not among the `quantizable`; if it offers `example_inputs()`, its arguments for one video, operations
    are counted. latent_shape is (c, T,
    H, W); fps is the frame rate of the decoded videos in frames per second. random says that weights are random: of
    such a model no metric is taken. batch_size is how many prompts are sampled together unless the user says otherwise.
    prompt_sets are the options of `dataset` that stand for the paper's first and second prompt set in its tables.
    """

    denoiser: nn.Module
    latent_shape: tuple[int, int, int, int]
    fps: float
    random: bool = False
    batch_size: int = 8
    prompt_sets: tuple[str, str] = ("opensora", "ucf101")

    @property
    def structure(self) -> nn.Module:
        """The denoiser's layers by name and shape; large models answer without their weights, on the meta device."""
        return self.denoiser

    def prepare(self, prompts: list[str], device: torch.device | str) -> int:
        """Does on `device` what `encode` needs for these prompts beside the denoiser; returns how many were new."""
        return 0

    def remarks(self, prompts: list[str]) -> list[str]:
        """What the model cannot make of these prompts, in sentences; told before they are sampled."""
        return []

    @abstractmethod
    def encode(self, prompts: list[str]) -> Conditions:
        """Conditions for n prepared prompts."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, *latent_shape] -> uint8 [B, T, H, W, 3]."""

    @abstractmethod
    def quantizable(self, fqn: str) -> bool:
        """Whether the denoiser's layer of that name may be quantized; the others stay in full precision."""

    def packed(self, fqn: str) -> bool:
        """Whether the linear module of that name gets the tokens of all prompts of a batch in one row."""
        return False

    @property
    def companions(self) -> dict[str, str]:
        """What identifies the parts beside the denoiser, by name: two models of the same companions encode and decode
        alike.
        """
        return {}

    @property
    @abstractmethod
    def weights_sha256(self) -> str:
        """Hexadecimal digest of every weight that the videos depend on."""
