"""Cost of a recipe: time to sample one batch with it over the time in full precision, on the CPU.

Both are measured in turn in one process, so that a drift of the machine's speed reaches both.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from tqdm import tqdm

from vdq.diffusion.noise import PromptNoise
from vdq.files import write_json
from vdq.stages import sample
from vdq.stages.experiment import Experiment

ROUNDS = 7


def run(experiment: Experiment) -> None:
    if not experiment.method.quantizes:
        raise ValueError(f"quant={experiment.cfg.quant.name} cannot be benchmarked; a recipe that quantizes is allowed")
    if experiment.cfg.trainer.accelerator not in ("cpu", "auto"):
        raise ValueError(
            f"trainer.accelerator={experiment.cfg.trainer.accelerator} cannot be benchmarked; cpu is allowed"
        )
    nets = {"full_precision": experiment.denoiser, experiment.cfg.quant.name: sample.denoiser(experiment)}
    prompts = experiment.prompts.evaluation[: experiment.batch_size]
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for round_ in tqdm(range(ROUNDS + 1), desc="benchmark", unit="round"):
        for name, net in nets.items():
            elapsed = _sampling_seconds(experiment, net, prompts)
            if round_:  # the first is a warm-up
                seconds[name].append(elapsed)
    full, quantized = seconds.values()
    ratios = [q / f for q, f in zip(quantized, full, strict=True)]
    result = {
        "quant": experiment.cfg.quant.name,
        "bits": experiment.bits,
        "backend": experiment.arithmetic,
        "prompts": len(prompts),
        "steps": experiment.sampler.schedule.num_steps,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "ratio": {"median": statistics.median(ratios), "quartiles": statistics.quantiles(ratios, n=4)[::2]},
    }
    write_json(experiment.folder / "benchmark.json", result)
    low, high = result["ratio"]["quartiles"]
    print(f"\n{experiment.cfg.quant.name} {experiment.bits}, {result['backend']}, {len(prompts)} prompts")
    print(f"{statistics.median(quantized):.2f} s, full precision {statistics.median(full):.2f} s")
    print(f"ratio {result['ratio']['median']:.3f} (median of {ROUNDS} rounds, quartiles {low:.3f} to {high:.3f})")


def _sampling_seconds(experiment: Experiment, net: nn.Module, prompts: list[str]) -> float:
    noise = PromptNoise(experiment.cfg.seed, list(range(len(prompts))), experiment.model.latent_shape)
    conditions = experiment.model.encode(prompts)
    start = time.perf_counter()
    experiment.sampler.sample(net, conditions, noise, experiment.clock)
    return time.perf_counter() - start
