"""Writes conf/alpha/<model>.yaml from the runs of the grid of alphas: ``experiment=alpha 'stages=[choose_alpha]'``.

The alpha of a method is chosen by CLIPSIM, as in the paper, averaged over the grid's bit-widths; where CLIPSIM of some
prompts does not separate alphas, by PSNR among those that tie.
"""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path

import pandas as pd

from vdq.errors import UserError
from vdq.files import write_text
from vdq.installation import CONF, IS_CHECKOUT
from vdq.metrics.catalogue import CLIPSIM, PSNR
from vdq.reports.alpha import GRID, METHODS, WIDTHS, best, choose, curves, pivot, tied
from vdq.reports.scores import key_of, per_video
from vdq.stages.experiment import Experiment
from vdq.tracking.registry import runs

log = logging.getLogger(__name__)
HEADER = (
    "# By CLIPSIM, ties by PSNR, over {widths} and {prompts} prompts of {dataset}:\n"
    "# python run.py experiment=alpha 'stages=[choose_alpha]'\n"
)
TEXT = """# Which alpha? Model {model}, {prompts} prompts of {dataset}, seed {seed}

Chosen: **{chosen}**. The paper takes the alpha with the highest CLIPSIM; averaged over the bit-widths that would be
{by_clipsim}. But these a paired t-test (5 %) over {prompts} prompts cannot tell from the best: {ties}.
Among those that tie the one with the highest PSNR is chosen; over all alphas PSNR would choose {by_psnr}.
`quant.alpha=0.7` or another `alpha=` option overrides the choice. Written by
`python run.py experiment=alpha 'stages=[choose_alpha]'` after `python run.py -m experiment=alpha`.

## CLIPSIM

{clipsim}

## PSNR to full precision, dB

{psnr}
"""


def run(experiment: Experiment) -> None:
    if not IS_CHECKOUT:
        raise UserError("'stages=[choose_alpha]' writes conf/alpha, needs a checkout, vdq is installed from a wheel")
    found = grid(experiment)
    if missing := lacking(found):
        raise UserError(
            f"paths.runs={experiment.cfg.paths.runs} lacks {missing} runs of the grid of alphas; "
            f"`python run.py -m experiment=alpha` makes them"
        )
    chosen = choose(found)
    name, prompts = experiment.cfg.model.name, len(experiment.prompts.evaluation)
    lines = [f"{method}: {alpha}\n" for method, alpha in chosen.items()]
    header = HEADER.format(widths=", ".join(WIDTHS), prompts=prompts, dataset=experiment.prompts.name)
    write_text(CONF / "alpha" / f"{name}.yaml", header + "".join(lines))
    write_report(experiment, found)
    log.info("choose_alpha: %s, written to %s", _words(chosen), CONF / "alpha" / f"{name}.yaml")


def write_report(experiment: Experiment, found: pd.DataFrame) -> None:
    """Writes the whole grid `found` to results/<model>/alpha as .md, .csv and .png."""
    name, prompts = experiment.cfg.model.name, len(experiment.prompts.evaluation)
    folder = Path(experiment.cfg.paths.results) / name
    words, by_clipsim, by_psnr = map(_words, (choose(found), best(found), best(found, "psnr")))
    ties = "; ".join(f"{method} {_listed(alphas)}" for method, alphas in tied(found).items())
    tables = {metric: pivot(found, metric) for metric in ("clipsim", "psnr")}
    told = {
        "dataset": experiment.prompts.name,
        "seed": experiment.cfg.seed,
        "chosen": words,
        "by_clipsim": by_clipsim,
        "by_psnr": by_psnr,
        "ties": ties,
    }
    write_text(folder / "alpha.md", TEXT.format(model=name, prompts=prompts, **told, **tables))
    write_text(folder / "alpha.csv", found.drop(columns="scores").to_csv(index=False))
    curves(found, (CLIPSIM, PSNR), folder / "alpha.png")


def lacking(found: pd.DataFrame) -> int:
    """How many runs of the grid are not among those found."""
    return len(METHODS) * len(WIDTHS) * len(GRID) - len(found)


def grid(experiment: Experiment) -> pd.DataFrame:
    """Finished runs of the grid: quant, bits, alpha, clipsim, its scores of the prompts, psnr, run."""
    registry, rows = runs(experiment.cfg.paths.runs), []
    if registry.empty:
        return pd.DataFrame()
    for quant, bits, alpha in product(METHODS, WIDTHS, GRID):
        signature = experiment.variant(quant=quant, bits=bits, fields={"quant.alpha": alpha}).identity.signature
        for run in registry[registry["signature"] == signature].to_dict("records")[-1:]:
            videos = per_video(run["folder"])
            scores = videos[key_of("clipsim", videos.columns)]
            row = {"quant": quant, "bits": bits, "alpha": alpha, "clipsim": scores.mean(), "psnr": run["psnr"]}
            rows.append(row | {"run": run["signature"], "scores": scores.tolist()})
    return pd.DataFrame(rows)


def _listed(alphas: list[float]) -> str:
    return f"all {len(GRID)} alphas" if len(alphas) == len(GRID) else ", ".join(map(str, alphas))


def _words(alphas: dict[str, float]) -> str:
    return ", ".join(f"{method} {alpha}" for method, alpha in alphas.items())
