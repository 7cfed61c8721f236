"""Wrong values for every field of every configuration group: one sentence each, before anything is written.

The inputs are generated from conf/: another type, not a number, out of any range, an unknown name, text that no list of
allowed values has. What is no error is not asked for here; whether a value is right is what the other tests say.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vdq.cli import one_sentence
from vdq.installation import CONF
from vdq.stages.checks import check
from vdq.stages.experiment import Experiment

NUMBERS = ("abc", "nan", "inf", "-1e30", "[1]", "{a: 1}", "ünïcode", "true")
TEXTS = ("[x]", "{a: 1}", "1.5", "true")
SWITCHES = ("maybe", "2", "[true]", "null")
# Places are made or looked for when they are needed; W&B takes any name; a class that Lightning makes checks itself.
FREE = ("paths.", "logger.", "hydra.", "trainer.", "benchmark.", "alpha.")
UNTYPED = ("quant.name", "model.name", "metrics.", "model.weights", "model.revisions")
OPTIONS = {
    "": [],
    **{f"quant={path.stem}": [f"quant={path.stem}"] for path in sorted((CONF / "quant").glob("*.yaml"))},
    "backend=int8_cpu": ["backend=int8_cpu"],
    "sampler=iddpm_20": ["sampler=iddpm_20"],
    "model=opensora_v1_512": ["model=opensora_v1_512", "dataset=shapes", "metrics=fidelity"],
    "export=packed": ["export=packed", "stages=[export]"],
    "export=onnx_qdq": ["export=onnx_qdq", "stages=[export]"],
}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["logger=csv", *overrides])


def leaves(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key in cfg:
        name, value = f"{prefix}{key}", cfg[key]
        if OmegaConf.is_dict(value):
            yield from leaves(value, f"{name}.")
        elif not str(key).startswith("_"):
            yield name, value


def wrong(name: str, value: object) -> Iterator[str]:
    """Overrides of a field that must be refused."""
    yield f"{name}x=1"
    if name.startswith((*FREE, *UNTYPED)):
        return
    if isinstance(value, bool):
        yield from (f"{name}={text}" for text in SWITCHES)
    elif isinstance(value, int | float):
        yield from (f"{name}={text}" for text in NUMBERS)
    elif isinstance(value, str):
        yield from (f"{name}={text}" for text in TEXTS)
    else:
        yield f"{name}={{a: 1}}"


def refused(overrides: list[str], override: str, runs: Path) -> str | None:
    """What is wrong with how an input is refused; None if nothing is."""
    try:
        cfg = composed(*overrides, f"paths.runs={runs}", override)
        experiment = Experiment(cfg)
        check(experiment, list(cfg.stages))
    except Exception as error:
        sentence = one_sentence(error)
        if sentence is None:
            return f"{override}: {type(error).__name__}: {str(error).splitlines()[:1]}"
        if "\n" in sentence or len(sentence) > 1000:
            return f"{override}: not one sentence: {sentence}"
        return None if not list(runs.glob("*")) else f"{override}: something was written"
    return f"{override}: accepted"


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_wrong_values_are_one_sentence_and_leave_nothing_behind(option, tmp_path):
    overrides = OPTIONS[option]
    group = option.partition("=")[0]
    inputs = [
        override
        for name, value in leaves(composed(*overrides))
        if not group or name.startswith(f"{group}.")
        for override in wrong(name, value)
    ]
    assert inputs
    problems = [problem for override in inputs if (problem := refused(overrides, override, tmp_path / "runs"))]
    assert not problems, f"{len(problems)} of {len(inputs)}:\n" + "\n".join(problems)


def test_more_than_two_hundred_inputs_are_generated():
    found = {
        override for overrides in OPTIONS.values() for leaf in leaves(composed(*overrides)) for override in wrong(*leaf)
    }
    assert len(found) > 200
