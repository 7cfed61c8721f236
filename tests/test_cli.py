"""What a user can get wrong ends in one sentence: the field, its value, what is allowed; before any model is built."""

import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import nn

from vdq.cli import (
    check_types,
    count,
    file_to_write,
    flags_first,
    one_sentence,
    one_sentence_at_the_end,
    opened,
    quoted,
)
from vdq.commands import without_effect
from vdq.commands.run import run
from vdq.errors import UserError
from vdq.models.guidance import guided
from vdq.models.shapes import ShapesModel
from vdq.stages.checks import check
from vdq.stages.experiment import Experiment

ROOT = Path(__file__).parents[1]
WRONG = {
    "bits=w6a8x": ("bits=w6a8x", "w6a8", "w16a16"),
    "quant=tsq": ("quant=tsq", "tsq_tsw", "cw_tw"),
    "model=sora": ("model=sora", "shapes"),
    "quant.alpha=1.7": ("quant", "alpha=1.7", "0..1"),
    "quant.alpha=abc": ("quant.alpha=abc", "a number or null"),
    "quant.momentum=-1": ("quant", "momentum=-1", "0..1"),
    "quant.num_time_ranges=21": ("num_time_ranges=21", "1..20", "per_step"),
    "quant.num_time_ranges=0": ("num_time_ranges=0", "1..20", "per_step"),
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
    "bits.layers.blocks.act=16": ("bits.layers is not a field", "allowed: bits.act, bits.weight"),
    "metrics.top.min=30": ("metrics.top is not a field", "metrics.retrieval"),
    "metrics.latents.min=30": ("metrics.latents.min is not a field", "metrics.latents has no fields to set"),
    "+fail_below.psnr=30": ("fail_below is not a field", "allowed: alpha", "reseeded"),
    "+keep=[x]": ("keep is not a field",),
    "+bits.layers.x=3": ("bits.layers is not a field", "bits.weight"),
    "+metrics.foo=3": ("metrics.foo=3", "a mapping with _target_"),
    "paths.runs=/dev/null": ("paths.runs=/dev/null", "a folder that can be written"),
    "paths.runs=/proc/x": ("paths.runs=/proc/x", "a folder that can be written"),
    "videos=/x/Müller": ("\"videos='/x/Müller'\"",),
    "videos=/x/#1": ("\"videos='/x/#1'\"",),
    "videos=/x/R&D": ("\"videos='/x/R&D'\"",),
    "artefact=[1].mp4": ("\"artefact='[1].mp4'\"",),
    "artefact=x(1)": ("\"artefact='x(1)'\"",),
    "artefact=a=b": ("\"artefact='a=b'\"",),
    "artefact=a,b": ("add -m", "\"artefact='a,b'\""),
    "logger.mode=sometimes": ("logger.mode=sometimes", "online, offline, disabled or null"),
}


TOGETHER = {
    "sampler.guidance_channels=9": ("sampler.guidance_channels=9", "0..4"),
    "backend=int8_cpu bits=w8a16": ("bits=w8a16", "at most 8", "backend=int8_cpu"),
    "quant=dvd_quant quant.delta=-1e30": ("quant", "delta=-1e+30", "at least 0"),
    "model=wan2_1_1_3b sampler.steps=1001": ("sampler", "steps=1001", "1..1000"),
    "model=opensora_v1_512 model.image_size=500": ("model.image_size=500", "a list"),
    "model=opensora_v1_512 model.image_size=[500,500]": ("model.image_size=[500, 500]", "multiples of 16"),
    "model=opensora_v1_512 model.weights.denoiser=/nope": ("model.weights.denoiser=/nope", "existing local file"),
    "model=opensora_v1_512 model.denoiser.num_heads=7": ("model.denoiser", "num_heads=7"),
    "model=opensora_v1_512 dataset=shapes trainer.devices=nan": ("trainer.devices=nan", "an integer"),
    "dataset=opensora trainer.precision=half": ("trainer", "half"),
    "dataset=opensora dataset.calibration_prompts=/nope": ("/nope", "cannot be read"),
    "dataset=opensora metrics.dover.weights=/nope": ("metrics.dover.weights=/nope",),
    "metrics=paper metrics.dover.num_offsets=0": ("metrics.dover", "num_offsets is 0"),
    "metrics=paper metrics.clip_standard.encoder.preprocessing=x": ("preprocessing=x", "evalcrafter, standard"),
    "metrics=paper metrics.dover.constants={a:1}": ("metrics.dover", "aesthetic and technical"),
    "metrics=shapes_fvd metrics.fvd.label=1.5": ("metrics.fvd.label=1.5", "text"),
    "metrics=fvd_ucf101 metrics.fvd.real.root=/nope": ("root=/nope does not exist",),
}


@pytest.mark.parametrize("overrides", TOGETHER)
def test_what_the_configuration_tells_is_told_before_anything_is_fetched(overrides, monkeypatch):
    def fetch(*_, local_files_only=False, **__):
        assert local_files_only, "something was fetched"
        raise LocalEntryNotFoundError("not here")

    for name in ("hf_hub_download", "snapshot_download", "download_url_to_file"):
        monkeypatch.setattr(f"vdq.sources.{name}", fetch)
    with pytest.raises(Exception) as raised, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run(compose("config", overrides=["logger=csv", *overrides.split()]))
    sentence = one_sentence(raised.value)
    assert sentence and not [part for part in TOGETHER[overrides] if part not in sentence], sentence


@pytest.mark.parametrize(
    "value", ["/x/Müller", "/x/it's", '/x/"a"', "/x/$HOME", "/x/`a`", "/x\\", "'\"", "a\\'b", "!x"]
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_suggested_quoting_gives_the_value_back(value, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = f"printf %s {quoted('videos', value)}"
    pasted = subprocess.run([shell, "-c", command], capture_output=True, text=True, check=True).stdout
    assert OverridesParser.create().parse_override(pasted).value() == value


def test_flags_may_stand_anywhere():
    assert flags_first(["quant=tsw", "-m", "bits=w8a8,w4a8"]) == ["-m", "quant=tsw", "bits=w8a8,w4a8"]
    assert flags_first(["quant=tsw", "--cfg", "job", "~metrics.clip"]) == ["--cfg", "job", "quant=tsw", "~metrics.clip"]
    with pytest.raises(ValueError, match="--cfg shows the configuration of one run; leave out -m"):
        flags_first(["-m", "quant=tsw", "--cfg", "job"])


@pytest.mark.parametrize("override", WRONG)
def test_wrong_value_is_one_sentence_before_any_model_is_built(override, monkeypatch):
    monkeypatch.setattr(ShapesModel, "__init__", lambda *_, **__: pytest.fail("a model was built"))
    monkeypatch.setattr(without_effect, "explicit", lambda: {"seed": "seed=1"})  # as on the command line
    logger = [] if override.startswith("logger") else ["logger=csv"]
    with pytest.raises(Exception) as raised, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run(compose("config", overrides=[*logger, override]))
    sentence = one_sentence(raised.value)
    assert sentence is not None and "\n" not in sentence
    missing = [part for part in WRONG[override] if part not in sentence]
    assert not missing, sentence


def test_errors_of_the_program_keep_their_traceback():
    assert one_sentence(TypeError("unsupported operand")) is None
    assert one_sentence(KeyError("weight")) is None
    assert one_sentence(RuntimeError("shapes do not match")) is None
    assert one_sentence(ValueError("of an invariant")) is None
    assert one_sentence(UserError("steps=0 must be at least 1")) == "steps=0 must be at least 1"
    with pytest.raises(ValueError, match="unpack") as raised:
        guided(nn.Identity(), torch.zeros(3), 0, None)  # the last frame is of this package
    assert one_sentence(raised.value) is None


def test_missing_weights_name_field_and_remedy(tmp_path):
    overrides = [f"model.weights={tmp_path}", f"paths.runs={tmp_path}", "logger=csv"]
    with pytest.raises(Exception) as raised, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run(compose("config", overrides=overrides))
    assert one_sentence(raised.value).startswith(f"model.weights={tmp_path} has no file")


@pytest.mark.parametrize("trainer", ["trainer.devices=0", "trainer.precision=half", "trainer.accelerator=abacus"])
def test_trainer_that_cannot_be_made_is_named(trainer):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        experiment = Experiment(compose("config", overrides=["logger=csv", trainer]))
    with pytest.raises(Exception) as raised:
        experiment.trainer()
    sentence = one_sentence(raised.value)
    assert sentence.startswith("trainer: ") and trainer.partition("=")[2] in sentence


def test_more_processes_than_cores_are_told(caplog):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        experiment = Experiment(compose("config", overrides=["logger=csv", "trainer.devices=999"]))
    check(experiment, ["sample"])
    assert "trainer.devices=999: so many processes, each with a model, share " in caplog.text


def test_arguments_of_commands_are_checked_before_any_work(tmp_path):
    assert file_to_write(str(tmp_path / "a.md")) == tmp_path / "a.md" and count("3") == 3
    for make, text in [(file_to_write, "/proc/x/a.md"), (file_to_write, str(tmp_path)), (count, "0"), (count, "1.5")]:
        with pytest.raises(ArgumentTypeError, match="must be"):
            make(text)
    assert list(tmp_path.iterdir()) == []


def test_a_command_ends_in_one_sentence_only_for_what_the_user_got_wrong():
    with pytest.raises(SystemExit, match="^error: it is wrong$"), one_sentence_at_the_end():
        raise UserError("it is wrong")
    with pytest.raises(KeyError), one_sentence_at_the_end():
        raise KeyError("a bug")


def test_types_are_checked_where_they_are_plain():
    hints = {"steps": int, "scale": float, "name": str | None, "tags": list[str], "absent": int, "net": object}
    check_types("group.", {"steps": 3, "scale": 2, "name": None, "tags": ["a"], "net": 5}, hints)
    check_types("group.", {"weights": {"a": "x"}, "folder": "x"}, {"weights": dict[str, str | None], "folder": Path})
    wrong = {"weights": ({"a": [1]}, dict[str, str | None]), "tags": (["x", 5], list[str]), "folder": (1.5, Path)}
    for name, (value, hint) in wrong.items():
        with pytest.raises(ValueError, match=rf"^group.{name}[.a1]*=\S+ must be (text|a list)"):
            check_types("group.", {name: value}, {name: hint})
    with pytest.raises(ValueError, match="^group.steps=1e*0* must be at most 9223372036854775807"):
        check_types("group.", {"steps": 10**40}, hints)
    for name, value in {"steps": True, "scale": "2", "name": 1, "tags": 5}.items():
        with pytest.raises(ValueError, match=f"^group.{name}={value} must be "):
            check_types("group.", {name: value}, hints)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_command_ends_with_the_sentence_and_code_1():
    done = python("run.py", "bits=w6a8x")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: bits=w6a8x is not known; allowed: ") and done.stderr.count("\n") == 1


def test_option_that_would_do_nothing_is_refused_on_the_command_line_of_one_run():
    done = python("run.py", "export=packed", "logger=csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: export=packed has no effect: ") and done.stderr.count("\n") == 1


def test_help_and_composed_config_are_readable():
    shown = python("run.py", "--help")
    assert shown.returncode == 0 and "quant: asq, asq_tsw, cw_tw" in shown.stdout and "bits: w16a16" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 210  # the line of models is the longest
    composed = python("run.py", "--cfg", "job", "quant=asq", "bits=w4a6", "alpha=half")
    assert composed.returncode == 0 and "asq: 0.5" in composed.stdout and "act: 6" in composed.stdout


def test_a_call_of_a_named_model_may_have_more_arguments():
    arguments = opened(["model=wan2_1_1_3b", "model.call={height: 64, max_sequence_length: 16}", "model.scheduler.x=1"])
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=arguments)
    assert cfg.model.call == {"height": 64, "width": 832, "num_frames": 81, "max_sequence_length": 16}
    assert cfg.model.scheduler == {"x": 1}
