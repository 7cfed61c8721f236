"""Sampling videos, and the calibration pass, which is sampling with observers attached."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from vdq import machine
from vdq.backends.integer import integer_weight_bytes
from vdq.data.prompts import PromptDataset
from vdq.data.samples import read_processors, read_schedules, write_sample, write_schedule
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.observer import StepObserver, step_observers
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.files import write_json
from vdq.models.base import VideoModel
from vdq.peak_memory import PeakMemory
from vdq.processes import end_with_parent
from vdq.quant.call_counter import CallCounter
from vdq.quant.convert import quantized_layers

EXECUTION = "sampling.json"


class Generation(pl.LightningModule):
    """Samples one video a prompt and writes each as soon as it is decoded.

    ``indices`` are the prompts to do, as positions in ``prompts``; the noise of a prompt depends on ``seed`` and its
    position only, so neither the batch size nor the number of devices nor an interruption changes what is sampled.
    """

    purpose = ""

    def __init__(
        self,
        *,
        model: VideoModel,
        denoiser: nn.Module,
        sampler: Sampler,
        clock: StepClock,
        prompts: list[str],
        indices: list[int],
        batch_size: int = 8,
        seed: int = 42,
        folder: Path | None = None,
        title: str = "sampling",
        arithmetic: str = "full precision",
        note: str = "",
    ) -> None:
        super().__init__()
        self.model, self.clock = model, clock
        if model.places_itself:
            self.__dict__["denoiser"] = denoiser  # no submodule, which a Trainer would move
        else:
            self.denoiser = denoiser
        self.sampler, self.prompts, self.indices, self.batch_size = sampler, prompts, indices, batch_size
        self.seed, self.folder, self.title, self.arithmetic, self.note = seed, folder, title, arithmetic, note

    @property
    def most_devices(self) -> int:
        """Lightning refuses a process without a prompt."""
        return len(self.indices)

    def setup(self, stage: str) -> None:
        end_with_parent()  # this may be one of several processes

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(Subset(PromptDataset(self.prompts), self.indices), batch_size=self.batch_size)

    def on_predict_start(self) -> None:
        steps = self.trainer.num_predict_batches[0] * self.sampler.steps
        self.progress = tqdm(total=steps, desc=self.title, unit="step", disable=not self.trainer.is_global_zero)
        self.reusing = self.model.reusing(self.denoiser)
        self.counter = CallCounter(self.denoiser).__enter__()
        self.peaks: dict[str, float] = {}
        self.started = time.monotonic()

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> None:
        indices, prompts = batch[0].tolist(), list(batch[1])
        latents = self.sample(self.reusing, indices, prompts)
        for observer in step_observers(self.denoiser):
            for index, schedule in zip(indices, observer.records(), strict=True):
                write_schedule(self.folder, index, schedule)
        with self.watched("decoding"):
            videos = self.model.decode(latents).cpu()
        for index, latent, frames in zip(indices, latents.cpu(), videos, strict=True):
            write_sample(self.folder, index, latent, frames, self.model.fps, self.note, machine.processor(self.device))

    def window(self, fqn: str) -> range:
        """The steps in which a layer is called."""
        return self.model.window(fqn, self.sampler)

    def sample(
        self, denoiser: nn.Module, indices: list[int], prompts: list[str], observers: Sequence[StepObserver] = ()
    ) -> Tensor:
        """Latents [n, c, T, H, W] fp32 of n prompts; denoiser: the task's own or what the model made of it."""
        conditions = self.model.encode(prompts)
        noise = PromptNoise(self.seed, indices, self.model.latent_shape, purpose=self.purpose)
        with self.watched("denoising"):
            return self.model.sample(
                denoiser, conditions, noise, self.clock, self.sampler, lambda *_: self.progress.update(), observers
            )

    @contextmanager
    def watched(self, phase: str) -> Iterator[None]:
        """Keeps the peak memory of a phase over all batches in ``peaks``, GB."""
        with PeakMemory(self.device) as peak:
            yield
        if peak.gigabytes is not None:
            self.peaks[phase] = max(self.peaks.get(phase, 0.0), peak.gigabytes)

    def on_predict_end(self) -> None:
        self.progress.close()
        self.counter.__exit__()
        calls = int(self.trainer.strategy.reduce(torch.tensor(self.counter.total, device=self.device), reduce_op="sum"))
        if quantized_layers(self.denoiser) and not calls:
            raise UserError("the method quantizes layers, but none of them was called while sampling")
        if self.trainer.is_global_zero:
            write_json(self.folder / EXECUTION, self._execution(calls))

    def _execution(self, calls: int) -> dict:
        """What really ran, for the manifest; of the last session if sampling was interrupted."""
        return {
            "arithmetic": self.arithmetic,
            "dtype": _dtype(self.denoiser),
            "device": self.device.type,
            "devices": self.trainer.world_size,
            **machine.describe(self.device),
            "processor": " and ".join(read_processors(self.folder)),  # of every session
            "quantized_layers": len(quantized_layers(self.denoiser)),
            "quantized_calls": calls,
            "mean_act_bits": _mean_act_bits(self.folder),
            "integer_weights_mb": round(integer_weight_bytes(self.denoiser) / 1e6, 2),
            "videos": len(self.indices),
            "of_videos": len(self.prompts),
            "peak_memory_gb": {phase: round(peak, 2) for phase, peak in self.peaks.items()},
            "note": self.note,
            "seconds": round(time.monotonic() - self.started, 2),
        }


def _dtype(denoiser: nn.Module) -> str:
    """The dtype that most of its numbers have: some layers of large models stay in fp32."""
    numbers: Counter[torch.dtype] = Counter()
    for parameter in denoiser.parameters():
        numbers[parameter.dtype] += parameter.numel()
    return str(numbers.most_common(1)[0][0]).removeprefix("torch.")


def _mean_act_bits(folder: Path) -> float | None:
    """Over videos and quantized steps, where it was decided while sampling; of every session."""
    bits = [bits for schedule in read_schedules(folder) for bits in schedule["act_bits"] if bits is not None]
    return sum(bits) / len(bits) if bits else None
