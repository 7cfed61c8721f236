"""Which experiments lack runs: ``python -m vdq.commands.status [EXPERIMENT ...] [FIELD=VALUE ...]``.

Prints the name of each experiment of conf/experiment that is a sweep of runs of which one is not finished; without
names, a table of all of them. FIELD=VALUE takes the place of what a sweep has: quant=asq, bits=w8a8,w4a8.
`python -m vdq.commands.run_missing` computes what they lack.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from vdq.cli import one_sentence_at_the_end, opened
from vdq.commands.sweep import jobs_of
from vdq.errors import UserError
from vdq.installation import CONF
from vdq.stages.experiment import Experiment
from vdq.stages.pipeline import reseeded
from vdq.tracking.registry import runs


def sweeps(names: list[str], overrides: list[str]) -> Iterator[tuple[str, list[Experiment]]]:
    """Name and runs of those experiments that score runs, which figure3 and table6 do not. A run is one of the jobs of
    `python run.py -m experiment=NAME OVERRIDES`, or the reseeded one that it brings; one of each signature.
    """
    models: dict[str, Experiment] = {}  # one set of weights in memory, whatever configurations share it
    for name in names:
        runs_ = []
        for cfg in _jobs(name, overrides):
            if "evaluate" not in cfg.stages:
                continue
            first = models.get(model := OmegaConf.to_yaml(cfg.model, resolve=True))
            run = Experiment(cfg) if first is None else first.sibling(cfg)
            models.setdefault(model, run)
            runs_ += [run, *([reseeded(run)] if cfg.reseeded and not run.method.quantizes else [])]
        if runs_:
            yield name, list({run.identity.signature: run for run in runs_}.values())


def _jobs(name: str, overrides: list[str]) -> list[DictConfig]:
    """The configuration of every job of the sweep; none where the experiment sweeps over nothing."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows quant=glob(*)
        own = parser.parse_overrides(overrides)
        single = [each.input_line for each in own if not each.is_sweep_override()]
        cfg = compose("config", [f"experiment={name}", *single], return_hydra_config=True)
        swept = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
        if not swept and len(single) == len(own):
            return []
        jobs = product(*jobs_of([*parser.parse_overrides(swept), *own]))
        return [compose("config", [f"experiment={name}", *job]) for job in jobs]


class Finished:
    """What the registry of some runs holds: ``run in Finished()`` tells whether a run was finished and scored by the
    metrics that it asks for. One that others have scored is not; scoring it again takes seconds.
    """

    def __init__(self) -> None:
        self._known: dict[str, set[tuple[str, str]]] = {}  # of a folder of runs: signature and metrics
        self._judges: dict[str, str] = {}  # signatures of metrics, which are built once for each configuration

    def __contains__(self, run: Experiment) -> bool:
        folder, metrics = run.cfg.paths.runs, OmegaConf.to_yaml(run.cfg.metrics)
        if folder not in self._known:
            table = runs(folder)
            self._known[folder] = set(zip(table["signature"], table["metrics"], strict=True)) if len(table) else set()
        if metrics not in self._judges:
            self._judges[metrics] = run.identity.metrics_signature
        return (run.identity.signature, self._judges[metrics]) in self._known[folder]


def progress(names: list[str], overrides: list[str]) -> pd.DataFrame:
    """experiment, runs, finished; one row for each of `sweeps`."""
    done = Finished()
    rows = [(name, len(wanted), sum(run in done for run in wanted)) for name, wanted in sweeps(names, overrides)]
    return pd.DataFrame(rows, columns=["experiment", "runs", "finished"])


def missing(names: list[str], overrides: list[str]) -> list[Experiment]:
    """The runs that these experiments lack, each once, whatever experiments share it. Raises UserError for one that is
    no sweep of runs that are scored.
    """
    done, found = Finished(), dict(sweeps(names, overrides))
    for name in names:
        if name not in found:
            raise UserError(f"experiment={name} scores no runs; `python run.py -m experiment={name}` does what it says")
    wanted = {run.identity.signature: run for runs_ in found.values() for run in runs_}
    return [run for run in wanted.values() if run not in done]


def names_and_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Names of experiments, and overrides: FIELD=VALUE, ~FIELD."""
    overrides = [argument for argument in arguments if "=" in argument or argument.startswith("~")]
    return [argument for argument in arguments if argument not in overrides], opened(overrides)


def main(arguments: list[str]) -> None:
    names, overrides = names_and_overrides(arguments)
    table = progress(names or sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")), overrides)
    if names:
        print("\n".join(table.loc[table["finished"] < table["runs"], "experiment"]))
    else:
        print(table.to_markdown(index=False))


if __name__ == "__main__":
    with one_sentence_at_the_end():
        main(sys.argv[1:])
