"""How far a quantized layer's output is from the original's, on a few recorded inputs: alpha without sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.layers import receiving_modules

ROWS = 48  # tokens kept of an input, at random


class InputRecorder:
    """Context manager that keeps some rows of the inputs of quantizable linears at some steps.

    ``inputs`` is fqn -> step -> fp32 [rows, C] on the CPU, of every batch that ran inside; ``places`` fqn -> step ->
    long [rows], the number of each among the rows of its batch.
    """

    def __init__(
        self, denoiser: nn.Module, clock: StepClock, quantizable: Callable[[str], bool], steps: Iterable[int]
    ) -> None:
        self.inputs: dict[str, dict[int, Tensor]] = {}
        self.places: dict[str, dict[int, Tensor]] = {}
        self._clock, self._steps = clock, set(steps)
        self._generator = torch.Generator().manual_seed(0)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._modules = receiving_modules(denoiser, quantizable)

    def __enter__(self) -> InputRecorder:
        self._hooks = [
            module.register_forward_pre_hook(lambda _, args, fqn=fqn: self._record(fqn, args[0]))
            for fqn, module in self._modules.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _record(self, fqn: str, x: Tensor) -> None:
        step = self._clock.step
        if step not in self._steps:
            return
        rows = x.detach().flatten(0, -2)
        chosen = torch.randint(len(rows), (ROWS,), generator=self._generator)
        for kept, values in ((self.inputs, rows[chosen.to(rows.device)].float().cpu()), (self.places, chosen)):
            before = kept.setdefault(fqn, {}).get(step)
            kept[fqn][step] = values if before is None else torch.cat([before, values])


def output_error(weight: Tensor, quant: LayerQuant, inputs: dict[int, Tensor]) -> float:
    """Relative squared error of a static layer's output, |Yq - Y|^2 / |Y|^2 over all recorded rows.

    weight [out, in] fp32; inputs: step -> [rows, in]. Both sums run over steps, so steps of large outputs count more,
    as they do in the sampled latents. Raises ValueError where tokens have groups, unless the rows are those of whole
    videos in order, and where branches of guidance have parameters of their own, which inputs of steps do not tell.
    """
    if quant.per_branch:
        raise ValueError("inputs by step do not tell the branches of guidance, which have parameters of their own")
    weights: dict[int, Tensor] = {}
    error = norm = 0.0
    exact = weight
    for output in quant.outputs:
        exact = output.weight(exact)
    for number, x in inputs.items():
        step, set_ = torch.tensor(number, device=quant.weight.steps.device), int(quant.weight.steps[number])
        if set_ not in weights:
            weights[set_] = quant.dequantized_weight(weight, set_)
        transformed = quant.transform_input(x, step)
        quantized = quant.act(transformed, step) @ weights[set_].T
        for branch in quant.branches:
            quantized += branch(transformed, step)
        y = x @ exact.T
        error += (quantized - y).double().square().sum().item()
        norm += y.double().square().sum().item()
    return error / norm if norm else 0.0
