"""Runs that experiments lack, computed side by side."""

import os
import shutil

import pytest

from vdq.commands import run_missing, status


@pytest.fixture
def overrides(finished, tmp_path):
    """Of a registry of its own with the testbed's full precision alone."""
    reference = finished.experiment("quant=tsq_tsw").reference.folder
    shutil.copytree(reference, tmp_path / "runs" / reference.name)
    return [*finished.overrides, f"paths.runs={tmp_path / 'runs'}"]


def experiment(tmp_path, name: str, **params: str) -> str:
    """Writes an experiment; returns the override that lets Hydra find it."""
    folder = tmp_path / "experiment"
    folder.mkdir(exist_ok=True)
    lines = "".join(f"\n      {key}: {value}" for key, value in params.items())
    (folder / f"{name}.yaml").write_text(f"# @package _global_\nhydra:\n  sweeper:\n    params:{lines}\n")
    return f"hydra.searchpath=[file://{tmp_path}]"


def test_every_run_is_listed_once_and_references_first(overrides, tmp_path):
    experiment(tmp_path, "one", quant="tsq_tsw,asq")
    path = experiment(tmp_path, "two", quant="asq,fp16", seed="42,43")
    found = status.missing(["one", "two"], [path, *overrides, "reseeded=true"])
    configurations = run_missing.ordered(found)
    signatures = {run.identity.signature for run in found}
    assert len(found) == len(signatures) == 5  # tsq_tsw, asq twice, full precision of 43 and 44
    assert [cfg.quant.name for cfg in configurations] == ["fp16", "fp16", "tsq_tsw", "asq", "asq"]
    assert {cfg.seed for cfg in configurations[:2]} == {43, 44} and not any(cfg.reseeded for cfg in configurations)


def test_a_run_is_computed_and_what_is_refused_is_one_sentence(overrides, tmp_path, capsys):
    path = experiment(tmp_path, "one", quant="asq")
    (cfg,) = run_missing.ordered(status.missing(["one"], [path, *overrides]))
    assert run_missing.compute(cfg)[1] is None and capsys.readouterr().out == ""
    assert status.missing(["one"], [path, *overrides]) == []
    cfg.stages = ["bake"]
    assert run_missing.compute(cfg)[1].startswith("stages=['bake'] has the unknown stage bake; allowed: ")


def test_a_damaged_file_is_named_and_made_again(overrides, tmp_path):
    path = experiment(tmp_path, "one", quant="asq")
    (cfg,) = run_missing.ordered(status.missing(["one"], [path, *overrides]))
    run_missing.compute(cfg)
    (sample, *_) = (tmp_path / "runs").glob("asq*/samples/*.safetensors")
    whole = sample.read_bytes()
    sample.write_bytes(whole[:-100])
    (cfg,) = run_missing.ordered(status.missing(["one"], [path, *overrides]))
    warnings, refused = run_missing.compute(cfg)
    assert refused is None and any(sample.name in text for text in warnings)
    assert sample.read_bytes() == whole and status.missing(["one"], [path, *overrides]) == []


def test_runs_that_other_metrics_scored_are_scored_again(overrides, tmp_path):
    path = experiment(tmp_path, "one", quant="fp16,asq")
    for cfg in run_missing.ordered(status.missing(["one"], [path, *overrides])):
        run_missing.compute(cfg)
    found = run_missing.ordered(status.missing(["one"], [path, *overrides, "~metrics.retrieval"]))
    assert [cfg.quant.name for cfg in found] == ["fp16", "asq"]
    before = {sample: sample.stat().st_mtime_ns for sample in (tmp_path / "runs").glob("*/samples/*")}
    for cfg in found:
        run_missing.compute(cfg)
    assert len(status.missing(["one"], [path, *overrides])) == 2
    assert {sample: sample.stat().st_mtime_ns for sample in before} == before  # scored only


@pytest.mark.parametrize(
    ("narrowed", "methods"),
    [
        (["quant=asq"], {("asq", 8, 0.5)}),
        (["quant=asq,tsw", "bits=w4a8"], {("asq", 4, 0.5), ("tsw", 4, None)}),
        (["quant=asq", "bits=w4a8", "quant.alpha=0.2,0.3"], {("asq", 4, 0.2), ("asq", 4, 0.3)}),
        (["quant.momentum=0.5", "quant=asq"], {("asq", 8, 0.5)}),
    ],
)
def test_command_line_takes_the_place_of_what_is_swept(overrides, tmp_path, narrowed, methods):
    path = experiment(tmp_path, "one", quant="cw_tw,asq,tsq_tsw", bits="w8a8")
    found = status.missing(["one"], [path, *overrides, *narrowed])
    assert {(run.cfg.quant.name, run.method.weight_bits, run.cfg.quant.get("alpha")) for run in found} == methods
    assert all(run.cfg.quant.momentum == 0.5 for run in found if "quant.momentum=0.5" in narrowed)


@pytest.mark.slow
def test_processes_compute_all_of_them(overrides, tmp_path, monkeypatch, capfd):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that they are as before afterwards
    path = experiment(tmp_path, "one", quant="asq,tsw,cw_tw")
    run_missing.main(["--jobs", "2", "one", path, *overrides])
    assert status.missing(["one"], [path, *overrides]) == []
    out, err = capfd.readouterr()
    assert out == "" and "3/3" in err and "sampling" not in err
    run_missing.main(["one", path, *overrides])  # nothing is left to do


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table6"], "error: experiment=table6 scores no runs; `python run.py -m experiment=table6` does"),
        (["no_such"], "error: experiment=no_such is not known; allowed: "),
        (["table1", "bits=w6a8x"], "error: bits=w6a8x is not known; allowed: "),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=message):
        run_missing.main(arguments)


def test_jobs_are_at_least_one(capsys):
    with pytest.raises(SystemExit):
        run_missing.main(["table1", "--jobs", "0"])
    assert "--jobs=0 must be at least 1" in capsys.readouterr().err


def test_more_jobs_than_cores_are_told(capsys):
    with pytest.raises(SystemExit):
        run_missing.main(["table6", "--jobs", "9999"])
    assert "warning: --jobs=9999 processes, each with a model, share " in capsys.readouterr().err
