"""Classifier-free guidance as in Open-Sora 1.0: one call of the denoiser for both branches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdq.models.reuse import PreparesInputs


@dataclass(frozen=True)
class Conditions:
    """Encoded prompts of STDiT: y [n, 1, L, D], the null caption [L, D], and mask [n, L], non-zero where a token
    counts, or None.

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


class Reusing:
    """Stands for a denoiser that samples many steps and batches, and lets it compute once what does not change: what
    it makes of the captions once per batch, of the timesteps once per schedule and batch size. On one machine, with the
    same threads, this changes no bit of the output. STDiT keeps about 12 n C numbers a block and step for batches of n
    prompts (XL/2: 8 M for 20 steps of n = 1) and 4 n L C a block for the last batch's captions.

    Of a denoiser that cannot prepare its inputs, such as an exported graph, every call is the plain call. Layers are
    not called in every step, so observers need the denoiser itself. Nobody may write into its weights meanwhile: make a
    new one for every task of sampling.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self._conditions: Conditions | None = None
        self._captions: Any = None
        self._timesteps: dict[tuple, Any] = {}

    def __call__(self, x: Tensor, *inputs: Any) -> Tensor:
        return self.denoiser(x, *inputs)

    def inputs(self, timestep: int, conditions: Conditions) -> tuple:
        """What stands for those of `guided_inputs`; conditions are the same if they are the same object."""
        if not isinstance(self.denoiser, PreparesInputs):
            return guided_inputs(timestep, conditions)
        if conditions is not self._conditions:
            self._conditions, self._captions = conditions, self.denoiser.prepare(*_captions(conditions))
        key = (timestep, len(conditions), conditions.y.device)
        if key not in self._timesteps:
            self._timesteps[key] = self.denoiser.prepare_timestep(_timesteps(timestep, conditions))
        return self._timesteps[key], self._captions


def guided_inputs(timestep: int, conditions: Conditions) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the denoiser gets beside [x; x]: timesteps [2n] long, [captions; null captions] [2n, 1, L, D] and the mask.

    The mask keeps its n rows: the null caption of a prompt is cut to that prompt's length.
    """
    return _timesteps(timestep, conditions), *_captions(conditions)


def guided(
    denoiser: nn.Module | Reusing,
    x: Tensor,
    timestep: int,
    conditions: Conditions,
    *,
    guidance_scale: float = 7.0,
    guidance_channels: int = 3,
) -> tuple[Tensor, Tensor]:
    """One call of the denoiser on [x; x] and [captions; null captions], mixed into one estimate per prompt.

    The first `guidance_channels` channels of the noise estimate are null + guidance_scale * (caption - null); the other
    channels and the variance logits are those of the caption half. x [n, c, T, H, W]; returns (eps, variance logits),
    both [n, c, T, H, W]. Raises ValueError when guidance_channels is not in 0..c or x and conditions differ in n.
    """
    count, channels = x.shape[:2]
    if not 0 <= guidance_channels <= channels:
        raise ValueError(f"guidance_channels={guidance_channels} must be in 0..{channels}, the channels of x")
    if count != len(conditions):
        raise ValueError(f"x has {count} rows, conditions have {len(conditions)}: they must be equal")
    inputs = denoiser.inputs if isinstance(denoiser, Reusing) else guided_inputs
    output = denoiser(torch.cat([x, x]), *inputs(timestep, conditions))
    eps, variance = output[:count].chunk(2, dim=1)
    caption, rest = eps.split([guidance_channels, channels - guidance_channels], dim=1)
    null = output[count:, :guidance_channels]
    return torch.cat([null + guidance_scale * (caption - null), rest], dim=1), variance


def _timesteps(timestep: int, conditions: Conditions) -> Tensor:
    return torch.full((2 * len(conditions),), timestep, dtype=torch.long, device=conditions.y.device)


def _captions(conditions: Conditions) -> tuple[Tensor, Tensor | None]:
    null = conditions.null.to(conditions.y.dtype).expand_as(conditions.y)
    return torch.cat([conditions.y, null]), conditions.mask
