"""Which experiments lack runs: ``python -m vdq.commands.pending [EXPERIMENT ...] [FIELD=VALUE ...]``.

Prints the name of each experiment of conf/experiment that is a sweep of runs of which one is not finished; without
names, a table of all of them. FIELD=VALUE takes the place of what a sweep has: quant=asq, bits=w8a8,w4a8.
`python -m vdq.commands.complete` computes what they lack.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from vdq.cli import one_sentence
from vdq.errors import UserError
from vdq.installation import CONF
from vdq.stages.experiment import Experiment
from vdq.tracking.registry import runs


def members(base: Experiment, params: dict[str, list[Any]]) -> list[Experiment]:
    """Every run of a sweep over config groups, such as quant and bits, and fields, such as seed and quant.alpha, and of
    its yardstick; one of each signature.
    """
    found = []
    for values in product(*params.values()):
        chosen = dict(zip(params, values, strict=True))
        options = {key: value for key, value in chosen.items() if (CONF / key).is_dir()}
        fields = {key: value for key, value in chosen.items() if key not in options}
        run = base.variant(fields=fields, **options)
        found.append(run)
        if base.cfg.yardstick and not run.method.quantizes:
            found.append(run.variant(fields={"seed": run.cfg.seed + 1}))
    return list({run.identity.signature: run for run in found}.values())


def _values(override: Override) -> list[Any]:
    return list(override.sweep_iterator(lambda x: x)) if override.is_sweep_override() else [override.value()]


def _sweep(cfg: DictConfig, own: list[Override], parser: OverridesParser) -> dict[str, list[Any]]:
    """The values that the experiment sweeps over, by config group or field, with those of the command line in their
    place: such as quant=asq, and quant.alpha=0.3 of every quant.
    """
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    swept = {each.key_or_group: _values(each) for each in parser.parse_overrides(params)}
    for each in own:
        key = each.key_or_group
        if each.is_sweep_override() or swept.keys() & {key, key.partition(".")[0]}:
            swept[key] = _values(each)
    return swept


def sweeps(names: list[str], overrides: list[str]) -> Iterator[tuple[str, list[Experiment]]]:
    """Name and runs of those experiments that score runs, which figure3 and table6 do not."""
    first = None
    for name in names:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows quant=glob(*)
            own = parser.parse_overrides(overrides)
            single = [each.input_line for each in own if not each.is_sweep_override()]
            cfg = compose("config", [f"experiment={name}", *single], return_hydra_config=True)
            params = _sweep(cfg, own, parser)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        if "evaluate" not in cfg.stages or not params:
            continue
        base = Experiment(cfg) if first is None else first.sibling(cfg)
        first = first or base
        yield name, members(base, params)


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


def told_apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Names of experiments, and overrides: FIELD=VALUE, ~FIELD."""
    overrides = [argument for argument in arguments if "=" in argument or argument.startswith("~")]
    return [argument for argument in arguments if argument not in overrides], overrides


def main(arguments: list[str]) -> None:
    names, overrides = told_apart(arguments)
    table = progress(names or sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")), overrides)
    if names:
        print("\n".join(table.loc[table["finished"] < table["runs"], "experiment"]))
    else:
        print(table.to_markdown(index=False))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        if (message := one_sentence(error)) is None:
            raise
        sys.exit(f"error: {message}")
