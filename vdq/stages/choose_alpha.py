"""runs of the alpha grid -> conf/alpha/<model>.yaml: ``experiment=alpha stages=[choose_alpha]``.

The alpha of a recipe is the one with the highest CLIPSIM, as in the paper, averaged over the grid's bit-widths.
"""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path

import pandas as pd

from vdq.files import write_text
from vdq.stages.experiment import CONF, Experiment
from vdq.tracking.alpha import GRID, HEIRS, RECIPES, WIDTHS, best, curves, pivot
from vdq.tracking.registry import runs

log = logging.getLogger(__name__)
HEADER = (
    "# Chosen by CLIPSIM over {widths} and {prompts} prompts: python run.py experiment=alpha stages=[choose_alpha]\n"
)
TEXT = """# Which alpha? Model {model}, {prompts} prompts

Per recipe the alpha with the highest CLIPSIM, averaged over the bit-widths, is chosen as in the paper: {chosen}.
PSNR would choose {by_psnr}. CLIPSIM differs by less between alphas than between two noises (`fp16, other noise` in the
tables), so take the choice for what it is; `quant.alpha=0.7` or another `alpha=` option overrides it. Written by
`python run.py experiment=alpha stages=[choose_alpha]` after `python run.py -m experiment=alpha`.

## CLIPSIM

{clipsim}

## PSNR to full precision, dB

{psnr}
"""


def run(experiment: Experiment) -> None:
    found = grid(experiment)
    missing = len(RECIPES) * len(WIDTHS) * len(GRID) - len(found)
    if missing:
        raise ValueError(
            f"paths.runs={experiment.cfg.paths.runs} lacks {missing} runs of the grid of alphas; "
            f"`python run.py -m experiment=alpha` makes them"
        )
    chosen = best(found)
    name, prompts = experiment.cfg.model.name, len(experiment.prompts.evaluation)
    lines = [f"{heir}: {alpha}\n" for recipe, alpha in chosen.items() for heir in HEIRS[recipe]]
    header = HEADER.format(widths=", ".join(WIDTHS), prompts=prompts)
    write_text(CONF / "alpha" / f"{name}.yaml", header + "".join(lines))
    folder = Path(experiment.cfg.paths.results) / name
    words, by_psnr = (
        ", ".join(f"{recipe} {alpha}" for recipe, alpha in each.items()) for each in (chosen, best(found, "psnr"))
    )
    tables = {metric: pivot(found, metric) for metric in ("clipsim", "psnr")}
    write_text(folder / "alpha.md", TEXT.format(model=name, prompts=prompts, chosen=words, by_psnr=by_psnr, **tables))
    write_text(folder / "alpha.csv", found.to_csv(index=False))
    curves(found, {"clipsim": "CLIPSIM", "psnr": "PSNR to full precision, dB"}, folder / "alpha.png")
    log.info("choose_alpha: %s, written to %s", words, CONF / "alpha" / f"{name}.yaml")


def grid(experiment: Experiment) -> pd.DataFrame:
    """Finished runs of the grid: quant, bits, alpha, clipsim, psnr, run."""
    registry, rows = runs(experiment.cfg.paths.runs), []
    if registry.empty:
        return pd.DataFrame()
    labelled = "clipsim_evalcrafter" in registry
    for quant, bits, alpha in product(RECIPES, WIDTHS, GRID):
        signature = experiment.variant(quant=quant, bits=bits, alpha=alpha).signature
        for run in registry[registry["signature"] == signature].to_dict("records")[-1:]:
            clipsim = run["clipsim_evalcrafter" if labelled and pd.notna(run["clipsim_evalcrafter"]) else "clipsim"]
            row = {"quant": quant, "bits": bits, "alpha": alpha, "clipsim": clipsim, "psnr": run["psnr"]}
            rows.append(row | {"run": run["signature"]})
    return pd.DataFrame(rows)
