"""Ranks alphas from statistics and a few recorded inputs, without sampling a video.

For each method and bit-width, the relative squared error of every layer's output, averaged over layers. Where the grid
was sampled (``experiment=alpha``), the rank correlation with its CLIPSIM and PSNR is written too.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from vdq.commands import choose_alpha
from vdq.diffusion.noise import PromptNoise
from vdq.files import write_text
from vdq.methods.base import Method
from vdq.quant.layers import Projection, projections
from vdq.quant.search import InputRecorder, output_error
from vdq.quant.stats import Stats
from vdq.reports.alpha import GRID, METHODS, WIDTHS, pivot
from vdq.reports.text import markdown
from vdq.stages import calibrate
from vdq.stages.compute import load_denoiser
from vdq.stages.experiment import Experiment
from vdq.stages.run_folder import intact
from vdq.tasks.calibration import Calibration

log = logging.getLogger(__name__)
PROMPTS, STEPS = 2, 5  # that inputs are recorded of
TEXT = """# Alpha without sampling

Model {model}: mean over {layers} layers of the relative squared error of the output, on {rows} recorded rows of
{prompts} calibration prompts at {steps} steps (lower is better; shown is -10 log10, in dB, higher is better). Ranked in
{seconds:.0f} s. Written by `python run.py experiment=alpha 'stages=[search_alpha]'`.

{table}

## Rank correlation with the sampled grid

{agreement}
"""


def run(experiment: Experiment) -> None:
    if not intact(Stats.load, experiment.files.stats):
        calibrate.run(experiment)
    stats = Stats.load(experiment.files.stats)
    recorder = _recorded(experiment)
    layers = projections(load_denoiser(experiment), experiment.model.quantizable)
    start, rows = time.monotonic(), []
    settings = [(quant, bits, alpha) for quant in METHODS for bits in WIDTHS for alpha in GRID]
    for quant, bits, alpha in tqdm(settings, desc="searching alpha", unit="setting"):
        method = experiment.variant(quant=quant, bits=bits, fields={"quant.alpha": alpha}).method
        errors = [_error(p, method, stats, recorder) for p in layers]
        decibel = -10 * torch.tensor(errors).double().mean().log10().item()
        rows.append({"quant": quant, "bits": bits, "alpha": alpha, "output_db": decibel})
    table = pd.DataFrame(rows)
    text = TEXT.format(
        model=experiment.cfg.model.name,
        layers=len(layers),
        rows=sum(len(x) for x in next(iter(recorder.inputs.values())).values()),
        prompts=PROMPTS,
        steps=STEPS,
        seconds=time.monotonic() - start,
        table=pivot(table, "output_db"),
        agreement=_agreement(table, choose_alpha.grid(experiment)),
    )
    folder = Path(experiment.cfg.paths.results) / experiment.cfg.model.name
    write_text(folder / "search_alpha.md", text)
    write_text(folder / "search_alpha.csv", table.to_csv(index=False))
    print(f"\n{text}")


@torch.inference_mode()
def _recorded(experiment: Experiment) -> InputRecorder:
    """Inputs of full-precision sampling of the first calibration prompts, at steps spread over all."""
    total = experiment.sampler.steps
    steps = torch.linspace(0, total - 1, min(STEPS, total)).round().int().tolist()
    denoiser, prompts = load_denoiser(experiment), experiment.prompts.calibration[:PROMPTS]
    indices, shape = list(range(len(prompts))), experiment.model.latent_shape
    noise = PromptNoise(experiment.cfg.seed, indices, shape, purpose=Calibration.purpose)
    with InputRecorder(denoiser, experiment.clock, experiment.model.quantizable, steps) as recorder:
        conditions = experiment.model.encode(prompts)
        experiment.model.sample(denoiser, conditions, noise, experiment.clock, experiment.sampler)
    return recorder


def _error(p: Projection, method: Method, stats: Stats, recorder: InputRecorder) -> float:
    weight = p.weight.detach().float().cpu()
    return output_error(
        weight, method.layer(weight, stats.layers[p.input_fqn], stats.num_steps), recorder.inputs[p.input_fqn]
    )


def _agreement(table: pd.DataFrame, sampled: pd.DataFrame) -> str:
    """Spearman's correlation over the alphas of each method and bit-width, as Markdown."""
    if sampled.empty:
        return "The grid was not sampled yet: `python run.py -m experiment=alpha`."
    both = table.merge(sampled, on=["quant", "bits", "alpha"])
    rows = [
        {
            "quant": quant,
            "bits": bits,
            "alphas": len(group),
            "with CLIPSIM": f"{spearmanr(group['output_db'], group['clipsim']).statistic:.2f}",
            "with PSNR": f"{spearmanr(group['output_db'], group['psnr']).statistic:.2f}",
            "best here": f"{group.loc[group['output_db'].idxmax(), 'alpha']:g}",
            "best CLIPSIM": f"{group.loc[group['clipsim'].idxmax(), 'alpha']:g}",
            "best PSNR": f"{group.loc[group['psnr'].idxmax(), 'alpha']:g}",
        }
        for (quant, bits), group in both.groupby(["quant", "bits"])
        if len(group) > 2
    ]
    return markdown(pd.DataFrame(rows))
