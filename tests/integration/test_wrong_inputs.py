"""Wrong values for every field of every configuration group: one sentence that names the field, before anything begins.

The inputs are generated from conf/: unknown names, other types, no numbers, numbers out of any range, files that are
missing, damaged, unreadable or folders, folders that cannot be made, names in other scripts. Where a field takes what
is asked for here, it is said below. Whether a value is right is what the other tests say.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import pytorch_lightning as pl
from huggingface_hub.errors import LocalEntryNotFoundError
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vdq.cli import one_sentence
from vdq.commands.run import COMMANDS, run
from vdq.installation import CONF

MISSING = object()
WHOLE = "structure"  # a mapping whose fields are those of other libraries
HUGE = "1" + 40 * "0"
SWITCHES = ("maybe", "2", "[true]", "null", "ünïcode")
NUMBERS = ("abc", "nan", "inf", "-1e30", HUGE, "[1]", "{a: 1}", "ünïcode", "true")
TEXTS = ("[x]", "{a: 1}", "1.5", "true", "nan")
LISTS = ("abc", "1.5", "true", "{a: 1}", "[{a: 1}]")
COUNTS = ("abc", "nan", "inf", "0", "-1", "1.5", HUGE, "[1]", "true", "ünïcode")
LONG_NAME = 300 * "x"
FILES = ("MISSING", "EMPTY", "BYTES", "FOLDER", "/proc/self/mem", LONG_NAME, "ünïcode")
FOLDERS = ("/dev/null", "/proc/x", "EMPTY/x", LONG_NAME)
# What is wrong for a field beside its type, by the field's name.
MEANT = {
    "stages": ("[]", "[nope]", "[sample,1]"),
    "batch_size": COUNTS,
    "seed": ("null",),
    "artefact": (*TEXTS, *FILES),
    "videos": (*TEXTS, "MISSING", "FOLDER", LONG_NAME, "ünïcode"),
    "prompts": (*TEXTS, *FILES),
    "reference": (*TEXTS, "MISSING", "FOLDER", LONG_NAME, "ünïcode"),
    "alpha.*": ("-0.1", "1.1", "null"),
    "bits.*": ("0", "1", "17", "null", "2.5"),
    "paths.*": (*FOLDERS, "null"),
    "*.cache": FOLDERS,
    "*.name": ("null", "a/b", ".."),
    "dataset.num_prompts": COUNTS,
    "dataset.*prompts": (*TEXTS, *FILES),
    "sampler.steps": ("0", "-1", "1001", "2.5"),
    "sampler.guidance_scale": ("-1", "1001"),
    "sampler.guidance_channels": ("-1", "5", "2.5"),
    "logger.mode": ("sometimes", "1", "[online]"),
    "logger.tags": ("[1]",),
    "trainer.accelerator": ("abacus", "null"),
    "model.*dtype": ("nope", "fp8"),
    "trainer.devices": ("0", "-2", "2.5"),
    "trainer.precision": ("half", "33", "null"),
    "trainer.strategy": ("alone",),
    "quant.alpha": ("-0.1", "1.1"),
    "quant.*_bits": ("0", "1", "17", "2.5"),
    "quant.match": ("nope", "nearest", "1"),
    "quant.*time_ranges": ("0", "21", "-1", "2.5", "per_frame", HUGE),
    "model.image_size": ("[64]", "[64,65]", "[0,64]", "[64,-64]", "[64,64,64]", f"[64,{HUGE}]"),
    "model.num_frames": ("0", "-1", "2.5"),
    "model.*_scale": ("0", "-1"),
    "model.fps": ("0", "-8"),
    "model.denoiser.*": ("0", "-1", "2.5"),
    "model.denoiser.num_heads": ("7",),
    "model.decode_frames": ("0", "-1", "2.5"),
    "model.pretrained": (*TEXTS, *FILES),
    "model.structure": (*TEXTS, "{pipeline: Nope}", "{pipeline: WanPipeline, vae: {}}", "{transformer: 1}"),
    "model.call": (*TEXTS, "{prompt: x}", "{nope: 1}", "{generator: 1}"),
    "model.call.*": ("0", "-1", "2.5", "[x]", "{a: 1}"),
    "model.scheduler": (*TEXTS, "{nope: 1}", "{_class_name: Nope}", "{_class_name: WanPipeline}"),
    "model.quantizable": (*TEXTS, "[]", "[nope]", "[1]"),
    "model.gigabytes": ("-1",),
    "model.weights": (*TEXTS, *FILES),
    "model.weights.*": ("MISSING", "ünïcode", LONG_NAME),
    "model.weights.denoiser": ("FOLDER",),
    "metrics.*.weights": (*TEXTS, *FILES),
    "metrics.*.revision": ("1.5", "[x]"),
    "metrics.*.frames_per_batch": ("0", "2.5"),
    "metrics.*.num_*": ("0", "-1", "2.5"),
    "metrics.*.constants": ("nope",),
    "metrics.*.preprocessing": ("nope",),
    "metrics.*.split": ("nope",),
    "metrics.*.root": ("MISSING", "EMPTY", "FOLDER", LONG_NAME),
    "benchmark.parts": ("[]", "[nope]"),
    "benchmark.integer": ("[nope]",),
    "benchmark.simulated": ("[nope]",),
    "benchmark.peers": ("[nope]",),
    "benchmark.rounds": ("0", "1", "2.5"),
    "benchmark.videos": COUNTS,
    "benchmark.limit": ("0", "1.1"),
    "export.path": (*TEXTS, *FOLDERS, "FILLED"),
    "backend.*": ("nope",),
    "quant.ema_order": ("nope",),
    "quant.token_granularity": ("nope",),
}
# Without a model, where none is wanted; and the stages that want the others.
SCORES = ["stages=[evaluate]", "videos=VIDEOS"]
OTHERS = {
    "metrics": SCORES,
    "paths": ["stages=[tabulate]"],
    "benchmark": ["stages=[benchmark]"],
    "export": [
        "stages=[export]",
        "quant=cw_tw",
        "quant.symmetric_weights=true",
        "quant.symmetric_acts=true",
    ],  # for all
}
# What an option does not have by itself.
OWN = ["model=wan2_1_1_3b"]
ALSO = {"model/diffusers": ["model.pretrained=PIPELINE"], "sampler/own": OWN, "sampler/own_20": OWN}
# What to start from by the groups that are asked for: all fields of all their options, or those that are named.
STARTS = {
    **{path.name: OTHERS.get(path.name, []) for path in sorted(CONF.iterdir()) if path.is_dir()},
    "top level": [],
    "videos prompts reference skip_bad": [*SCORES, "metrics=fidelity"],
}
del STARTS["debug"], STARTS["experiment"], STARTS["hydra"]  # of fields of the others, but for Hydra's own, see below


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def changed(overrides: list[str], name: str, text: str) -> DictConfig:
    """As Hydra composes it, but only once for all values of a field that is there."""
    base = composed(*overrides)
    value = OmegaConf.select(base, name, default=MISSING)
    if value is MISSING or OmegaConf.is_dict(value):
        return composed(*overrides, f"{name}={text}")
    cfg = deepcopy(base)
    try:
        OmegaConf.update(cfg, name, OverridesParser.create().parse_override(f"{name}={text}").value())
    except OmegaConfBaseException:  # to which Hydra adds the field's name
        return composed(*overrides, f"{name}={text}")
    return cfg


def leaves(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, object, tuple]]:
    """Name, value and kind of every field; those of one class are of one kind, wherever it is used."""
    for key in cfg:
        name, value = f"{prefix}{key}", cfg[key]
        if OmegaConf.is_dict(value) and key != WHOLE:
            yield from leaves(value, f"{name}.")
        elif not str(key).startswith("_"):
            yield name, value, (cfg.get("_target_", prefix), key)


def wrong(name: str, value: object) -> Iterator[str]:
    """What a field must not be set to."""
    yield from (text for pattern, texts in MEANT.items() if fnmatch(name, pattern) for text in texts)
    if isinstance(value, bool):
        yield from SWITCHES
    elif isinstance(value, int | float):
        yield from NUMBERS
    elif isinstance(value, str):
        yield from TEXTS
    elif OmegaConf.is_list(value):
        yield from LISTS
    else:
        yield "{a: 1}"


def inputs(start: str) -> list[list[str]]:
    """Overrides, of which the last of each is wrong; every kind of field once."""
    found, kinds = [], set()
    for path in sorted((CONF / start).glob("*.yaml")) or [None]:
        option = [f"{start}={path.stem}", *ALSO.get(f"{start}/{path.stem}", [])] if path else []
        overrides = [*STARTS[start], *option]
        for name, value, kind in leaves(composed("logger=csv", *overrides)):
            asked = (
                name.startswith(f"{start}.")
                or name in start.split()
                or (start == "top level" and "." not in name and not (CONF / name).is_dir())
            )
            if asked and kind not in kinds:
                kinds.add(kind)
                texts = dict.fromkeys(wrong(name, value))
                found += [[*overrides, override] for override in (f"{name}x=1", *(f"{name}={text}" for text in texts))]
    return found


class Begun(Exception):
    """Something is computed or fetched."""


def begin(*_: object, local_files_only: bool = False, **__: object) -> None:
    raise LocalEntryNotFoundError("it is not here") if local_files_only else Begun


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The folder of the user, from which the names in capital letters start; no stage can begin there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for name in ("stages.pipeline.make", *(f"commands.{name}.run" for name in COMMANDS)):
        monkeypatch.setattr(f"vdq.{name}", begin)
    for verb in ("test", "predict"):
        monkeypatch.setattr(pl.Trainer, verb, begin)
    for name in ("hf_hub_download", "snapshot_download", "download_url_to_file"):
        monkeypatch.setattr(f"vdq.sources.{name}", begin)
    (tmp_path / "EMPTY").touch()
    (tmp_path / "BYTES").write_bytes(bytes(range(256)))
    for name in ("FOLDER", "FILLED", "VIDEOS"):
        (tmp_path / name).mkdir()
    (tmp_path / "FILLED" / "a").touch()
    (tmp_path / "VIDEOS" / "a.mp4").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(overrides: list[str], place: Path) -> str | None:
    """What is wrong with how an input is refused; None if nothing is."""
    before = sorted(place.rglob("*"))
    name, _, text = overrides[-1].partition("=")
    told = overrides[-1][:80]
    try:
        run(changed(["logger=csv", *overrides[:-1]], name, f"'{text}'" if "ï" in text else text))
    except Exception as error:
        sentence = one_sentence(error)
        if sentence is None:
            return f"{told}: {type(error).__name__}: {str(error)[:100]}"
        if "\n" in sentence or len(sentence) > 1500:
            return f"{told}: not one sentence: {sentence}"
        if name.rpartition(".")[2] not in sentence and text not in sentence:
            return f"{told}: the field is not named: {sentence}"
    else:
        return f"{told}: accepted"
    return f"{told}: something was written" if sorted(place.rglob("*")) != before else None


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_wrong_values_are_one_sentence_and_leave_nothing_behind(start, place):
    if start == "model":
        from tests import tiny_pipelines  # imports much that the quick tests of this file do not need

        tiny_pipelines.save("wan", place / "PIPELINE")
    asked = inputs(start)
    problems = [problem for overrides in asked if (problem := refused(overrides, place))]
    assert asked and not problems, f"{len(problems)} of {len(asked)}:\n" + "\n".join(problems)


@pytest.mark.parametrize("group", sorted(path.name for path in CONF.iterdir() if path.is_dir()))
def test_unknown_options_of_every_group_are_one_sentence(group, place):
    problem = refused([f"{group}=nope"], place)
    assert problem is None, problem


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "paths.runs=/proc/x", "quant=asq,tsw"),
        ("-m", "paths.runs=[1]", "quant=asq,tsw"),
        ("-m", "hydra.sweep.dir=/dev/null", "quant=asq,tsw"),
        ("-m", "hydra.sweep.subdir=/proc/x", "quant=asq,tsw"),
        ("hydra.run.dir=/proc/x",),
        ("hydra.output_subdir=/proc/x",),
        ("hydra.run.dirx=1",),
        ("hydra/launcher=nope",),
        ("hydra.callbacks.comparison=1",),
        ("hydra.callbacks.comparison.runs={a: 1}",),
    ],
    ids=" ".join,
)
def test_hydras_own_fields_end_in_one_sentence(arguments, tmp_path):
    command = [sys.executable, "-m", "vdq", *arguments, "sampler.steps=0", "logger=csv"]
    environment = os.environ | {"PYTHONPATH": str(CONF.parent)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
