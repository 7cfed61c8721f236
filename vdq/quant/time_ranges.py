"""Time ranges: runs of consecutive denoising steps that share quantization parameters."""

import torch
from torch import Tensor

from vdq.errors import UserError

PER_STEP = "per_step"


class TimeRanges:
    """Ranges over `num_steps` steps, as equal as they can be; range 0 holds the noisiest steps.

    `num_ranges` K is 1..num_steps, or "per_step" for one range per step. `index` is long [num_steps], step -> range,
    floor(step * K / num_steps): where K does not divide the steps, sizes differ by one, and the longer ranges, of which
    the first is one, lie evenly among the others (50 steps in 4 ranges: 13, 12, 13, 12). For timesteps spread evenly
    over 0..999 and a K that divides the steps, the partition equals upstream's floor(t * K / 1000). Raises UserError,
    naming the field `name`, for another number.
    """

    def __init__(self, num_steps: int, num_ranges: int | str = 1, *, name: str = "num_time_ranges") -> None:
        count = num_steps if num_ranges == PER_STEP else num_ranges
        if not isinstance(count, int) or not 1 <= count <= num_steps:
            raise UserError(f"{name}={num_ranges} must be in 1..{num_steps}, the denoising steps, or {PER_STEP}")
        self.num_steps, self.num_ranges = num_steps, count
        self.index = torch.arange(num_steps) * count // num_steps

    def steps(self, number: int) -> range:
        """The steps of one range, in sampling order."""
        first = -(-number * self.num_steps // self.num_ranges)
        return range(first, -(-(number + 1) * self.num_steps // self.num_ranges))

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """`values` [num_steps, ...] of the steps, range by range."""
        return values.split([len(self.steps(number)) for number in range(self.num_ranges)])
