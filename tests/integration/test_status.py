"""Which experiments lack runs, on a testbed with full precision and one run of tsq_tsw."""

import shutil
from pathlib import Path

import pytest
import yaml

from vdq.commands import status


@pytest.fixture
def options(finished, tmp_path):
    """Overrides with which an experiment `mine` sweeps over what a test wants."""

    def make(content: dict | None = None, **params: str) -> list[str]:
        path = Path(tmp_path, "experiment", "mine.yaml")
        path.parent.mkdir()
        content = (content or {}) | {"hydra": {"sweeper": {"params": params}}}
        path.write_text(f"# @package _global_\n{yaml.safe_dump(content)}")
        run = finished.experiment("quant=tsq_tsw")
        for folder in (run.folder, run.reference.folder):  # without what other tests have added
            shutil.copytree(folder, tmp_path / "runs" / folder.name)
        return [f"hydra.searchpath=[file://{tmp_path}]", *finished.overrides, f"paths.runs={tmp_path / 'runs'}"]

    return make


def test_counts_the_runs_that_the_sweep_would_make(options, capsys):
    overrides = options(bits="w8a8,w4a4", quant="fp16,tsq_tsw,asq")
    table = status.progress(["mine", "figure3"], overrides)  # figure3 scores no run
    assert table.to_dict("records") == [{"experiment": "mine", "runs": 5, "finished": 2}]  # full precision has no bits
    status.main(["mine", *overrides])
    assert capsys.readouterr().out.split() == ["mine"]


def test_fields_of_a_method_may_be_swept(options):
    table = status.progress(["mine"], options(**{"quant": "asq,tsq_tsw", "quant.alpha": "0.1,0.5"}))
    assert table.loc[0, ["runs", "finished"]].tolist() == [4, 1]  # 0.5 is the testbed's alpha


def test_several_fields_may_be_swept_together(options):
    parts = {"momentum": 0.95, "symmetric_acts": False}
    content = {"parts": parts, "quant": {name: f"${{parts.{name}}}" for name in parts}}
    overrides = options(content, parts="{},{momentum: 0.5},{momentum: 0.5, symmetric_acts: true}")
    assert status.progress(["mine"], overrides).loc[0, ["runs", "finished"]].tolist() == [3, 1]


def test_seeds_may_be_swept(options):
    table = status.progress(["mine"], options(quant="fp16,tsq_tsw", seed="42,43"))
    assert table.loc[0, ["runs", "finished"]].tolist() == [4, 2]


def test_full_precision_with_other_noise_is_a_run(options):
    table = status.progress(["mine"], [*options(quant="fp16,tsq_tsw"), "reseeded=true"])
    assert table.loc[0, ["runs", "finished"]].tolist() == [3, 2]


def test_nothing_is_printed_when_all_runs_are_there(options, capsys):
    status.main(["mine", *options(quant="fp16,tsq_tsw")])
    assert capsys.readouterr().out.strip() == ""
