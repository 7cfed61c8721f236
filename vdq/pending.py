"""Which experiments lack runs: ``python -m vdq.pending [EXPERIMENT ...] [FIELD=VALUE ...]``.

Prints the name of each experiment of conf/experiment that is a sweep of runs of which one is not finished; without
names, a table of all of them. `make tables` starts only those.
"""

from __future__ import annotations

import sys
from itertools import product

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from vdq.stages.experiment import CONF, Experiment
from vdq.tracking.registry import runs


def signatures(base: Experiment, params: DictConfig) -> list[str]:
    """Of every run of a sweep over quant, bits or quant.alpha."""
    names, found = [key.removeprefix("quant.") for key in params], []
    for values in product(*(_values(key, value) for key, value in params.items())):
        run = base.variant(**dict(zip(names, values, strict=True)))
        found.append(run.signature)
        if base.cfg.yardstick and not run.method.quantizes:
            found.append(run.variant(seed=base.cfg.seed + 1).signature)
    return list(dict.fromkeys(found))


def _values(key: str, value: str) -> list[object]:
    parsed = OverridesParser.create().parse_override(f"{key}={value}")
    return list(parsed.sweep_iterator(lambda x: x)) if parsed.is_sweep_override() else [parsed.value()]


def progress(names: list[str], overrides: list[str]) -> pd.DataFrame:
    """experiment, runs, finished; one row each for experiments that score runs, which figure3 and table6 do not."""
    rows, first = [], None
    for name in names:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [f"experiment={name}", *overrides], return_hydra_config=True)
        params = cfg.hydra.sweeper.params
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        if "evaluate" not in cfg.stages or not params:
            continue
        base = Experiment(cfg) if first is None else first.sibling(cfg)
        first = first or base
        wanted = signatures(base, params)
        table = runs(cfg.paths.runs)
        done = set(table["signature"]) if len(table) else set()
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
