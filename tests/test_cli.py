"""What a user can get wrong ends in one sentence: the field, its value, what is allowed; before any model is built."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from vdq import stages
from vdq.cli import check_types, one_sentence
from vdq.models.shapes import ShapesModel

ROOT = Path(__file__).parents[1]
WRONG = {
    "bits=w6a8x": ("bits=w6a8x", "w6a8", "w16a16"),
    "quant=tsq": ("quant=tsq", "tsq_tsw", "cw_tw"),
    "model=sora": ("model=sora", "shapes"),
    "quant.alpha=1.7": ("quant", "alpha=1.7", "0..1"),
    "quant.alpha=abc": ("quant.alpha=abc", "a number or null"),
    "quant.momentum=-1": ("quant", "momentum=-1", "0..1"),
    "quant.num_time_ranges=3": ("num_time_ranges=3", "1, 2, 4, 5, 10, 20, per_step"),
    "quant.num_time_ranges=0": ("num_time_ranges=0", "1, 2, 4, 5, 10, 20, per_step"),
    "bits.weight=1": ("weight_bits=1", "2..16"),
    "bits.act=17": ("act_bits=17", "2..16"),
    "bits.act=6.5": ("act_bits=6.5", "an integer"),
    "quantt=asq": ("quantt", "is not a field", "did you mean quant?"),
    "quant.alhpa=0.3": ("quant.alhpa", "is not a field", "did you mean quant.alpha?"),
    "sampler.foo=1": ("sampler.foo", "is not a field", "sampler.steps"),
    "+quant.foo=1": ("quant.foo", "is not a field", "--cfg job"),
    "quant=asq,tsw": ("quant=asq,tsw", "several values", "-m"),
    "sampler.steps=0": ("sampler", "steps=0", "1..", "1000"),
    "sampler.steps=1001": ("sampler", "steps=1001", "1..", "1000"),
    "sampler.steps=abc": ("sampler.steps=abc", "an integer"),
    "sampler.guidance_scale=abc": ("sampler.guidance_scale=abc", "a number"),
    "dataset.num_prompts=0": ("dataset.num_prompts=0", "null or 1..48"),
    "dataset.num_prompts=49": ("dataset.num_prompts=49", "null or 1..48"),
    "dataset.num_prompts=abc": ("dataset.num_prompts=abc", "an integer or null"),
    "stages=[calibrate,train]": ("stages", "train", "calibrate, choose_alpha, evaluate, export, quantize, sample"),
    "stages=sample": ("stages=sample", "list"),
    "stages=[]": ("stages=[]", "list"),
    "batch_size=0": ("batch_size=0", "at least 1"),
    "batch_size=two": ("batch_size=two", "an integer"),
    "seed=1.5": ("seed=1.5", "an integer"),
    "force=maybe": ("force=maybe", "true or false"),
    "logger.mode=sometimes": ("logger.mode=sometimes", "online, offline, disabled or null"),
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_value_is_one_sentence_before_any_model_is_built(override, monkeypatch):
    monkeypatch.setattr(ShapesModel, "__init__", lambda *_, **__: pytest.fail("a model was built"))
    logger = [] if override.startswith("logger") else ["logger=csv"]
    with pytest.raises(Exception) as raised, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        stages.run(compose("config", overrides=[*logger, override]))
    sentence = one_sentence(raised.value)
    assert sentence is not None and "\n" not in sentence
    missing = [part for part in WRONG[override] if part not in sentence]
    assert not missing, sentence


def test_errors_of_the_program_keep_their_traceback():
    assert one_sentence(TypeError("unsupported operand")) is None
    assert one_sentence(KeyError("weight")) is None
    assert one_sentence(RuntimeError("shapes do not match")) is None


def test_missing_weights_name_field_and_remedy(tmp_path):
    overrides = [f"model.weights={tmp_path}", f"paths.runs={tmp_path}", "logger=csv"]
    with pytest.raises(Exception) as raised, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        stages.run(compose("config", overrides=overrides))
    assert one_sentence(raised.value).startswith(f"model.weights={tmp_path} has no file")


@pytest.mark.parametrize("trainer", ["trainer.devices=0", "trainer.precision=half", "trainer.accelerator=abacus"])
def test_trainer_that_cannot_be_made_is_named(trainer):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        experiment = stages.Experiment(compose("config", overrides=["logger=csv", trainer]))
    with pytest.raises(Exception) as raised:
        experiment.trainer()
    sentence = one_sentence(raised.value)
    assert sentence.startswith("trainer: ") and trainer.partition("=")[2] in sentence


def test_types_are_checked_where_they_are_plain():
    hints = {"steps": int, "scale": float, "name": str | None, "tags": list[str], "absent": int}
    check_types("group.", {"steps": 3, "scale": 2, "name": None, "tags": 5}, hints)
    for name, value in {"steps": True, "scale": "2", "name": 1}.items():
        with pytest.raises(ValueError, match=f"^group.{name}={value} must be "):
            check_types("group.", {name: value}, hints)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_command_ends_with_the_sentence_and_code_1():
    done = python("run.py", "bits=w6a8x")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: bits=w6a8x is not known; allowed: ") and done.stderr.count("\n") == 1


def test_help_and_composed_config_are_readable():
    shown = python("run.py", "--help")
    assert shown.returncode == 0 and "quant: asq, asq_tsw, cw_tw" in shown.stdout and "bits: w16a16" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 140  # the line of recipes is the longest
    composed = python("run.py", "--cfg", "job", "quant=asq", "bits=w4a6", "alpha=half")
    assert composed.returncode == 0 and "asq: 0.5" in composed.stdout and "act: 6" in composed.stdout
