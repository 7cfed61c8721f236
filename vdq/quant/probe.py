"""How much the activations of one denoising step count: everything in full precision but them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.quant.affine import fake_quantize, qparams_from_range, tensor_range
from vdq.quant.layers import receiving_modules

BITS = 6  # of the probe; what counts is the ratio between steps, which hardly depends on it


class StepProbe:
    """Context manager inside which the inputs of quantizable linears are quantized per tensor, with the range of the
    tensor at hand, whenever the clock stands at `step`. A tool of calibration: no method executes this.
    """

    def __init__(self, denoiser: nn.Module, clock: StepClock, quantizable: Callable[[str], bool], step: int) -> None:
        self._clock, self._step = clock, step
        self._modules = list(receiving_modules(denoiser, quantizable).values())

    def __enter__(self) -> StepProbe:
        self._hooks = [module.register_forward_pre_hook(self._quantize) for module in self._modules]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _quantize(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._clock.step != self._step:
            return None
        x = args[0]
        qparams = qparams_from_range(*tensor_range(x), bits=BITS)
        return fake_quantize(x, qparams, bits=BITS).to(x.dtype), *args[1:]
