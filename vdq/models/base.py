"""What a video model offers to the rest of the program. Nothing here knows of quantization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.observer import StepObserver
from vdq.diffusion.samplers import Noise, Sampler
from vdq.models.family import Family
from vdq.models.one_block import Call, OneBlock

RANDOM = "random"  # in place of a path: weights drawn at random
Callback = Callable[[int, Tensor], None]


class EncodedPrompts(Protocol):
    """What `encode` makes of n prompts. Only the model knows what is inside; others count it and take rows of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> EncodedPrompts: ...


class VideoModel(ABC):
    """Denoisers with their prompt encoder, their latent decoder, their guidance and their sampling.

    A small model is an nn.Module as well, so that a Trainer moves all of it; a large one keeps its parts to itself and
    has one of them on the device at a time.

    family: the facts of its denoisers. denoisers: their names. Of several, each of which works at some steps only,
    `denoiser` and `structure` are an nn.ModuleDict by these names, so that the fqn of a layer begins with its
    denoiser's. latent_shape is (c, T, H, W), or None where the model draws its noise in a shape of its own; fps is
    the frame rate of the decoded videos in frames per second. random says that weights are random: of such a model no
    metric is taken. batch_size is how many prompts are sampled together unless the user says otherwise.
    """

    family: Family
    denoisers: tuple[str, ...] = ("transformer",)
    denoiser: nn.Module
    latent_shape: tuple[int, int, int, int] | None
    fps: float
    unsigned: tuple[str, ...] = ()  # arguments that say where things are: no number depends on them
    version: int = 1  # to be raised when the same weights and prompts would give other latents or frames
    random: bool = False
    batch_size: int = 8
    takes_images: bool = False  # whether its prompts are ImagePrompts
    places_itself: bool = False  # whether it moves its denoisers to the device of the clock by itself
    makes_blocks: bool = False  # whether the benchmark measures its blocks, by `shallow` and `one_block`
    owns_precision: bool = False  # whether its own dtype counts, and no Trainer converts its weights

    @property
    def structure(self) -> nn.Module:
        """The denoiser's layers by name and shape; large models answer without their weights, on the meta device."""
        return self.denoiser

    def shallow(self, call: dict[str, Any] | None = None) -> VideoModel:
        """The same model with random weights and one block of each kind, for videos of a small size or of what `call`
        says in place of the model's own settings; only where `makes_blocks`.
        """
        raise NotImplementedError

    def first_call(self, sampler: Sampler) -> Call:
        """The arguments with which a sampling calls a denoiser first, on the CPU; reads no weights. Only where
        `makes_blocks`.
        """
        raise NotImplementedError

    def one_block(self, sampler: Sampler) -> OneBlock:
        """The denoiser of a shallow model, and its calls; only where `makes_blocks`."""
        raise NotImplementedError

    @property
    def architecture(self) -> dict[str, Any] | None:
        """What builds the structure, as JSON: `_target_`, a class of this package, and its arguments. None where only
        the model itself can: an artefact is then loaded with the model at hand.
        """
        return None

    @abstractmethod
    def check(self, sampler: Sampler) -> None:
        """Raises UserError when the model cannot sample as the user wants. Loads no weights."""

    @abstractmethod
    def timesteps(self, sampler: Sampler) -> Tensor:
        """What the denoiser is given at each step, in sampling order: fp32 [N] on the CPU."""

    def windows(self, sampler: Sampler) -> dict[str, range]:
        """The steps in which each denoiser works, by its name. They are consecutive."""
        return dict.fromkeys(self.denoisers, range(sampler.steps))

    def prepare(self, prompts: list[str], device: Any) -> int:
        """Does on `device` what `encode` needs for these prompts beside the denoiser; returns how many were new."""
        return 0

    def remarks(self, prompts: list[str]) -> list[str]:
        """What the model cannot make of these prompts, in sentences; said before they are sampled."""
        return []

    @abstractmethod
    def encode(self, prompts: list[str]) -> EncodedPrompts:
        """What `sample` takes for n prepared prompts, on any device."""

    @abstractmethod
    def sample(
        self,
        denoiser: nn.Module,
        conditions: EncodedPrompts,
        noise: Noise,
        clock: StepClock,
        sampler: Sampler,
        callback: Callback | None = None,
        observers: Sequence[StepObserver] = (),
    ) -> Tensor:
        """Latents [n, *latent_shape] fp32 of n prompts, on the device of the denoiser.

        `denoiser` computes: the model's own, a quantized copy of it, or what `reusing` made of one. `clock` is set
        before every call of it, to the step and, where guidance takes two calls, to the branch. After every step its
        StepObservers and `observers` get the guided estimate, and `callback(step, latents)` is called. The state is
        fp32 whatever the denoiser's dtype. Raises UserError when the clock counts other steps than the sampler.
        """

    def reusing(self, denoiser: nn.Module) -> Any:
        """Stands for a denoiser in the samplings of one task, in which nobody writes into its weights: the same bits in
        less time, where the family allows it. Not every layer is then called in every step.
        """
        return denoiser

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, *latent_shape] -> uint8 [B, T, H, W, 3]."""

    def quantizable(self, fqn: str) -> bool:
        """Whether the denoiser's layer of that name may be quantized; the others stay in full precision."""
        return self.family.is_quantizable(self._within(fqn))

    def packed(self, fqn: str) -> bool:
        """Whether the linear module of that name gets the tokens of all prompts of a batch in one row."""
        return self.family.is_packed(self._within(fqn))

    def window(self, fqn: str, sampler: Sampler) -> range:
        """The steps in which the layer of that name is called."""
        windows = self.windows(sampler)
        return windows[fqn.partition(".")[0] if len(self.denoisers) > 1 else self.denoisers[0]]

    @property
    def companions(self) -> dict[str, str]:
        """What identifies the parts beside the denoiser, by name: two models of the same companions encode and decode
        alike.
        """
        return {}

    @property
    @abstractmethod
    def weights_sha256(self) -> str:
        """Hexadecimal digest of every weight that the videos depend on; large models read it from a cache."""

    def _within(self, fqn: str) -> str:
        """The name of a layer inside its denoiser."""
        return fqn.partition(".")[2] if len(self.denoisers) > 1 else fqn
