"""The table at the end of a sweep: its runs in their order, and their references."""

from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from vdq.commands.sweep import Comparison


def job(tmp_path: Path, number: int | str) -> OmegaConf:
    return OmegaConf.create({"hydra": {"job": {"num": number}, "sweep": {"dir": str(tmp_path / "sweep")}}})


def done(value: object, status: JobStatus = JobStatus.COMPLETED) -> JobReturn:
    result = JobReturn(status=status)
    result.return_value = value
    return result


def printed(capsys) -> list[str]:
    """The runs of the printed table, from top to bottom."""
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [row.split("|")[-2].strip(" `") for row in rows[2:]]


def sweep(tmp_path: Path, *folders: object) -> None:
    callback = Comparison(str(tmp_path))
    for number, folder in enumerate(folders):
        callback.on_job_end(job(tmp_path, number), done(folder))
    callback.on_multirun_end(job(tmp_path, "???"))


def test_runs_in_their_order_after_their_references(tmp_path, finish, capsys):
    for name in ("other", "zeta", "alpha", "fp16", "unrelated"):
        finish(name, reference="elsewhere" if name == "unrelated" else "fp16")
    sweep(tmp_path, "zeta", "alpha", "zeta")
    assert printed(capsys) == ["fp16", "zeta", "alpha"]


def test_more_than_nine_jobs_keep_their_order(tmp_path, finish, capsys):
    names = [f"run{number}" for number in range(12)]
    for name in names:
        finish(name)
    sweep(tmp_path, *names)
    assert printed(capsys) == names


def test_swept_reference_is_shown_once_where_it_was_swept(tmp_path, finish, capsys):
    finish("asq")
    finish("fp16")
    sweep(tmp_path, "asq", "fp16")
    assert printed(capsys) == ["asq", "fp16"]


def test_refused_and_unfinished_runs_are_left_out(tmp_path, finish, capsys):
    finish("asq")
    (tmp_path / "benchmarked").mkdir()
    sweep(tmp_path, None, "benchmarked", "asq")
    assert printed(capsys) == ["asq"]


def test_failed_job_is_left_out(tmp_path, finish, capsys):
    finish("asq")
    callback = Comparison(str(tmp_path))
    callback.on_job_end(job(tmp_path, 0), done("asq", JobStatus.FAILED))
    callback.on_multirun_end(job(tmp_path, "???"))
    assert printed(capsys) == []


def test_sweep_of_stages_that_finish_nothing_prints_nothing(tmp_path, capsys):
    (tmp_path / "calibrated").mkdir()
    sweep(tmp_path, "calibrated")
    assert capsys.readouterr().out == ""


def test_single_run_leaves_no_sweep_folder(tmp_path):
    Comparison(str(tmp_path)).on_job_end(job(tmp_path, "???"), done("asq"))
    assert not (tmp_path / "sweep").exists()
