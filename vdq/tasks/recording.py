"""A second calibration pass, for methods that judge by the output of layers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vdq.quant.bit_switch import BitSwitch
from vdq.quant.probe import StepProbe
from vdq.quant.recorded_inputs import RecordedInputs
from vdq.quant.search import InputRecorder
from vdq.tasks.calibration import Calibration
from vdq.tasks.generation import Generation

PROBED = 2  # prompts on which the error of every step is measured


class Recording(Generation):
    """Writes inputs of every quantizable layer, of all prompts, and what every step counts to ``path``.

    Prompt by prompt, so that the recorded rows do not depend on the batch size; with the noise of the calibration. The
    error of a step takes one sampling of the first prompts a step.
    """

    purpose = Calibration.purpose

    def __init__(self, *, path: Path, signature: str, **settings) -> None:
        super().__init__(title="recording", batch_size=1, **settings)
        self.path, self.signature = path, signature

    @property
    def most_devices(self) -> int:
        """What is recorded stays in one process."""
        return 1

    @property
    def samplings(self) -> int:
        """How many videos are sampled."""
        return len(self.indices) + min(PROBED, len(self.indices)) * self.sampler.steps

    def on_predict_start(self) -> None:
        super().on_predict_start()
        self.progress.reset(total=self.samplings * self.sampler.steps)
        steps = range(self.sampler.steps)
        self.recorder = InputRecorder(self.denoiser, self.clock, self.model.quantizable, steps)
        self.changes: list[Tensor] = []
        self.errors: list[Tensor] = []

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> None:
        index, prompts = batch[0].tolist(), list(batch[1])
        watching = BitSwitch(self.clock, low=4, high=8)  # whose bits nobody uses
        with self.recorder:
            latents = self.sample(self.denoiser, index, prompts, observers=[watching])
        self.changes += [torch.tensor(record["change"]) for record in watching.records()]
        if batch_idx < PROBED:
            errors = [self._error(step, index, prompts, latents) for step in range(self.sampler.steps)]
            self.errors.append(torch.stack(errors))

    def _error(self, step: int, index: list[int], prompts: list[str], latents: Tensor) -> Tensor:
        """Mean squared error of the latents when the activations of `step` are probed."""
        with StepProbe(self.denoiser, self.clock, self.model.quantizable, step):
            return (self.sample(self.denoiser, index, prompts) - latents).square().mean().cpu()

    def _of_all_steps(self, fqn: str, steps: dict[int, Tensor]) -> dict[int, Tensor]:
        """With the nearest step's rows where the layer is not called, as Observer.stats."""
        window = self.window(fqn)
        return {step: steps[min(max(step, window.start), window.stop - 1)] for step in range(self.sampler.steps)}

    def on_predict_end(self) -> None:
        self.progress.close()
        error, change = torch.stack(self.errors).mean(0), torch.stack(self.changes).mean(0)
        recorded = [
            {fqn: self._of_all_steps(fqn, steps) for fqn, steps in kept.items()}
            for kept in (self.recorder.inputs, self.recorder.places)
        ]
        RecordedInputs.of_steps(*recorded, error, change, self.signature).save(self.path)
