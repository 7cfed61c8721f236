"""Writes the reference of all config groups, from conf/ itself: ``python -m vdq.commands.configuration FILE``.

A file of conf/ says in its first comment what the option is, and beside a field what it means: those are the texts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vdq.files import write_text
from vdq.installation import CONF

INTRODUCTION = """# Every option and field

Written by `python -m vdq.commands.configuration docs/configuration.md` from the files of `conf/`; a test fails when it
is out of date. [Runs, sweeps, results](using.md) explains how options and fields are set.

`python run.py --cfg job` prints what a command would run, with every value in its place.
"""
# In the order in which a run meets them; a new group comes last.
GROUPS = {
    "quant": "The method that decides how each layer is quantized.",
    "bits": "Bit-widths of weights and activations; `bits.weight=5 bits.act=7` gives any others from 2 to 16.",
    "model": "The video model.",
    "dataset": "Prompts to calibrate on and prompts to evaluate on.",
    "sampler": "The sampler and its steps.",
    "alpha": "Smoothing factors chosen for each model; methods take theirs from here.",
    "backend": "What executes a quantized layer.",
    "metrics": "What videos are scored by.",
    "export": "What `'stages=[export]'` writes.",
    "benchmark": "What `'stages=[benchmark]'` measures.",
    "trainer": "Devices and precision: the arguments of Lightning's Trainer.",
    "logger": "Where results are logged beside the run folder.",
    "paths": "Where things are.",
    "experiment": "Sweeps of the paper's tables and figures, and of ours: `python run.py -m experiment=table1`.",
    "debug": "Small runs.",
    "hydra": "Settings of Hydra itself.",
}


def reference(conf: Path) -> str:
    """The page, as Markdown."""
    parts = [INTRODUCTION, "## The top level\n", _file(conf / "config.yaml")]
    groups = sorted((path for path in conf.iterdir() if path.is_dir()), key=_place)
    for group in groups:
        parts.append(f"## `{group.name}=`\n\n{GROUPS.get(group.name, '')}\n")
        for path in sorted(group.glob("*.yaml")):
            parts += [f"### `{group.name}={path.stem}`\n", _file(path)]
    return "\n".join(parts)


def _place(group: Path) -> tuple[int, str]:
    names = list(GROUPS)
    return names.index(group.name) if group.name in names else len(names), group.name


def _file(path: Path) -> str:
    """The first comment of a file as text, the rest as code."""
    lines = path.read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line.startswith("# @package")]
    lines = [line for line in lines if line not in packages]
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    about = " ".join(line.removeprefix("#").strip() for line in lines[:count])
    code = "\n".join(packages + lines[count:])
    return (f"{about}\n\n" if about else "") + f"```yaml\n{code}\n```\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference(CONF))
