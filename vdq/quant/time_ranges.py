"""Time ranges: runs of consecutive denoising steps that share quantization parameters."""

import torch

from vdq.errors import UserError

PER_STEP = "per_step"


class TimeRanges:
    """Equal ranges over `num_steps` steps; range 0 holds the noisiest steps.

    `num_ranges` is a divisor of `num_steps`, or "per_step" for one range per step. `index` is long [num_steps], step
    -> range. For timesteps spread evenly over 0..999 the partition equals upstream's floor(t * K / 1000). Raises
    UserError, naming the field `name`, when the steps cannot be divided equally.
    """

    def __init__(self, num_steps: int, num_ranges: int | str = 1, *, name: str = "num_time_ranges") -> None:
        count = num_steps if num_ranges == PER_STEP else num_ranges
        if not isinstance(count, int) or count < 1 or num_steps % count:
            divisors = [str(k) for k in range(1, num_steps + 1) if num_steps % k == 0]
            allowed = ", ".join([*divisors, PER_STEP])
            raise UserError(f"{name}={num_ranges} does not divide {num_steps} denoising steps, allowed: {allowed}")
        self.num_steps, self.num_ranges = num_steps, count
        self.index = torch.arange(num_steps) * count // num_steps

    def steps(self, number: int) -> range:
        """The steps of one range, in sampling order."""
        width = self.num_steps // self.num_ranges
        return range(number * width, (number + 1) * width)
