"""Runs that experiments lack, computed side by side."""

import os
import shutil

import pytest

from vdq import complete, pending


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
    found = pending.missing(["one", "two"], [path, *overrides, "yardstick=true"])
    configurations = complete.ordered(found)
    assert len(found) == len({run.signature for run in found}) == 5  # tsq_tsw, asq twice, full precision of 43 and 44
    assert [cfg.quant.name for cfg in configurations] == ["fp16", "fp16", "tsq_tsw", "asq", "asq"]
    assert {cfg.seed for cfg in configurations[:2]} == {43, 44} and not any(cfg.yardstick for cfg in configurations)


def test_a_run_is_computed_and_what_is_refused_is_one_sentence(overrides, tmp_path, capsys):
    path = experiment(tmp_path, "one", quant="asq")
    (cfg,) = complete.ordered(pending.missing(["one"], [path, *overrides]))
    assert complete.compute(cfg) is None and capsys.readouterr().out == ""
    assert pending.missing(["one"], [path, *overrides]) == []
    cfg.stages = ["bake"]
    assert complete.compute(cfg).startswith("stages=['bake'] has the unknown stage bake; allowed: ")


@pytest.mark.slow
def test_processes_compute_all_of_them(overrides, tmp_path, monkeypatch, capfd):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that they are as before afterwards
    path = experiment(tmp_path, "one", quant="asq,tsw,cw_tw")
    complete.main(["--jobs", "2", "one", path, *overrides])
    assert pending.missing(["one"], [path, *overrides]) == []
    out, err = capfd.readouterr()
    assert out == "" and "3/3" in err and "sampling" not in err
    complete.main(["one", path, *overrides])  # nothing is left to do


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such"], "error: experiment=no_such is not known; allowed: "),
        (["table1", "bits=w6a8x"], "error: bits=w6a8x is not known; allowed: "),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=message):
        complete.main(arguments)


def test_jobs_are_at_least_one(capsys):
    with pytest.raises(SystemExit):
        complete.main(["table1", "--jobs", "0"])
    assert "--jobs=0 must be at least 1" in capsys.readouterr().err
