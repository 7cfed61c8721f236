"""Which experiments lack runs: ``python -m vdq.pending [EXPERIMENT ...] [FIELD=VALUE ...]``.

Prints the name of each experiment of conf/experiment that is a sweep of runs of which one is not finished; without
names, a table of all of them. `python -m vdq.complete` computes what they lack.
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
from omegaconf import DictConfig, OmegaConf

from vdq.stages.experiment import CONF, Experiment
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
    return list({run.signature: run for run in found}.values())


def _sweep(cfg: DictConfig) -> dict[str, list[Any]]:
    """The values that the experiment sweeps over, by config group or field."""
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows the options of quant=glob(*)
    return {
        each.key_or_group: list(each.sweep_iterator(lambda x: x)) if each.is_sweep_override() else [each.value()]
        for each in parser.parse_overrides(params)
    }


def sweeps(names: list[str], overrides: list[str]) -> Iterator[tuple[str, list[Experiment]]]:
    """Name and runs of those experiments that score runs, which figure3 and table6 do not."""
    first = None
    for name in names:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [f"experiment={name}", *overrides], return_hydra_config=True)
            params = _sweep(cfg)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        if "evaluate" not in cfg.stages or not params:
            continue
        base = Experiment(cfg) if first is None else first.sibling(cfg)
        first = first or base
        yield name, members(base, params)


def finished(run: Experiment) -> set[str]:
    """Signatures of the registry that the run belongs to."""
    table = runs(run.cfg.paths.runs)
    return set(table["signature"]) if len(table) else set()


def progress(names: list[str], overrides: list[str]) -> pd.DataFrame:
    """experiment, runs, finished; one row for each of `sweeps`."""
    rows, done = [], None
    for name, wanted in sweeps(names, overrides):
        done = finished(wanted[0]) if done is None else done
        count = sum(run.signature in done for run in wanted)
        rows.append({"experiment": name, "runs": len(wanted), "finished": count})
    return pd.DataFrame(rows)


def missing(names: list[str], overrides: list[str]) -> list[Experiment]:
    """The runs that these experiments lack, each once, whatever experiments share it."""
    wanted = {run.signature: run for _, found in sweeps(names, overrides) for run in found}
    done = finished(next(iter(wanted.values()))) if wanted else set()
    return [run for signature, run in wanted.items() if signature not in done]


def main(arguments: list[str]) -> None:
    overrides = [argument for argument in arguments if "=" in argument]
    names = [argument for argument in arguments if "=" not in argument]
    table = progress(names or sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")), overrides)
    if names:
        print("\n".join(table.loc[table["finished"] < table["runs"], "experiment"]))
    else:
        print(table.to_markdown(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
