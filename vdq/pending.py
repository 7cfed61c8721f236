"""Which experiments lack runs: ``python -m vdq.pending [EXPERIMENT ...] [FIELD=VALUE ...]``.

Prints the name of each experiment of conf/experiment that is a sweep of runs of which one is not finished; without
names, a table of all of them. `make tables` starts only those.
"""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from vdq.stages.experiment import CONF, Experiment
from vdq.tracking.registry import runs


def signatures(base: Experiment, params: dict[str, list[Any]]) -> list[str]:
    """Of every run of a sweep over config groups, such as quant and bits, and fields, such as seed and quant.alpha."""
    found = []
    for values in product(*params.values()):
        chosen = dict(zip(params, values, strict=True))
        options = {key: value for key, value in chosen.items() if (CONF / key).is_dir()}
        fields = {key: value for key, value in chosen.items() if key not in options}
        run = base.variant(fields=fields, **options)
        found.append(run.signature)
        if base.cfg.yardstick and not run.method.quantizes:
            found.append(run.variant(fields={"seed": run.cfg.seed + 1}).signature)
    return list(dict.fromkeys(found))


def _sweep(cfg: DictConfig) -> dict[str, list[Any]]:
    """The values that the experiment sweeps over, by config group or field."""
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows the options of quant=glob(*)
    return {
        each.key_or_group: list(each.sweep_iterator(lambda x: x)) if each.is_sweep_override() else [each.value()]
        for each in parser.parse_overrides(params)
    }


def progress(names: list[str], overrides: list[str]) -> pd.DataFrame:
    """experiment, runs, finished; one row each for experiments that score runs, which figure3 and table6 do not."""
    rows, first, done = [], None, set()
    for name in names:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [f"experiment={name}", *overrides], return_hydra_config=True)
            params = _sweep(cfg)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        if "evaluate" not in cfg.stages or not params:
            continue
        if first is None:
            base = first = Experiment(cfg)
            table = runs(cfg.paths.runs)
            done = set(table["signature"]) if len(table) else set()
        else:
            base = first.sibling(cfg)
        wanted = signatures(base, params)
        rows.append({"experiment": name, "runs": len(wanted), "finished": len(done & set(wanted))})
    return pd.DataFrame(rows)


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
