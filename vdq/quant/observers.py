"""Calibration observers: forward pre-hooks that reduce every input of a linear layer to statistics, never storing the
input.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vdq.diffusion.clock import BRANCHES, StepClock
from vdq.diffusion.timesteps import Timesteps
from vdq.errors import UserError
from vdq.quant.layers import receiving_modules
from vdq.quant.stats import LayerStats, Stats, check_complete


class Observer:
    """Context manager that records the inputs of the linears whose parts satisfy `quantizable(fqn)`.

    Run the full-precision model inside it, at every step that `clock` counts and for any number of batches, then ask
    for `stats`. Call the denoiser itself: one that reuses results (vdq.models.reuse) does not call every layer in
    every step. An input is read as [rows, n, C], a 2-d one as rows of one token. The recorded row statistic is the
    maximum of |X| over the n tokens, summed over rows. Inputs with `packed(fqn)` hold the tokens of all prompts in one
    row: of them the maximum over all calls is kept. Both are then the same at every batch size. A NaN or infinite
    input raises UserError naming layer and step. Where the clock tells the branch of a call, each has statistics of its
    own beside those of both together (LayerStats.branches).
    """

    def __init__(
        self,
        denoiser: nn.Module,
        clock: StepClock,
        quantizable: Callable[[str], bool],
        packed: Callable[[str], bool] = lambda fqn: False,
    ) -> None:
        self._clock, self._packed = clock, packed
        self._layers: dict[tuple[str, str | None], LayerStats] = {}  # by layer and branch
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._modules = receiving_modules(denoiser, quantizable)

    def __enter__(self) -> "Observer":
        self._hooks = [module.register_forward_pre_hook(self._hook(fqn)) for fqn, module in self._modules.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def stats(
        self,
        *,
        num_prompts: int,
        signature: str = "",
        timesteps: Timesteps | None = None,
        window: Callable[[str], range] | None = None,
    ) -> Stats:
        """What was recorded, on the CPU. timesteps: those of the steps. `window(fqn)`: the consecutive steps in which a
        layer is called, all if not given; of the others, which no call reads, it has the statistics of the nearest of
        these. Raises UserError when a step saw no input.
        """
        layers = {fqn: self._of(fqn) for fqn in self._modules}
        if window is not None:
            layers = {fqn: layer.beyond(window(fqn)) for fqn, layer in layers.items()}
        check_complete(layers.items())
        facts = {"num_steps": self._clock.num_steps, "num_prompts": num_prompts, "timesteps": timesteps}
        return Stats(layers, **facts, signature=signature)

    def _of(self, fqn: str) -> LayerStats:
        """Of one layer, on the CPU."""
        seen = {branch: layer.to("cpu") for (name, branch), layer in self._layers.items() if name == fqn}
        if not seen:
            raise UserError(f"layer {fqn} saw no input during calibration")
        return LayerStats.of_branches([seen[branch] for branch in BRANCHES]) if len(seen) > 1 else seen.popitem()[1]

    def _hook(self, fqn: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: self._record(fqn, args[0].detach())

    @torch.no_grad()
    def _record(self, fqn: str, x: Tensor) -> None:
        step, key = int(self._clock.index), (fqn, self._clock.branch)
        if key not in self._layers:
            self._layers[key] = LayerStats.empty(self._clock.num_steps, x.shape[-1], x.device, packed=self._packed(fqn))
        layer = self._layers[key]
        x = x.reshape(1 if layer.packed else x.shape[0], -1, x.shape[-1])
        # Two reductions: on the CPU aminmax over this axis is not vectorized and 20 times slower.
        lo, hi = x.amin(1).float(), x.amax(1).float()
        if not bool((torch.isfinite(lo) & torch.isfinite(hi)).all()):
            raise UserError(f"layer {fqn} received NaN or infinite values at step {step}")
        row_max = torch.maximum(hi, -lo).double()
        count = torch.tensor(len(x), device=x.device)
        seen = LayerStats(lo.amin(0), hi.amax(0), row_max.sum(0), count, packed=layer.packed)
        before = LayerStats(
            layer.min[step], layer.max[step], layer.abs_sum[step], layer.rows[step], packed=layer.packed
        )
        after = seen if before.rows == 0 else before.merge(seen)
        layer.min[step], layer.max[step] = after.min, after.max
        layer.abs_sum[step], layer.rows[step] = after.abs_sum, after.rows
