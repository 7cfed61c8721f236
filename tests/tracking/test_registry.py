"""The registry holds finished runs and nothing else."""

import logging
import os

import vdq.tracking
from vdq.tracking.registry import read_result, runs


def test_one_row_a_finished_run_oldest_first(tmp_path, finish):
    finish("a", finished="2026-01-02T00:00:00+00:00", clipsim=0.1)
    finish("b", finished="2026-01-01T00:00:00+00:00", clipsim=0.2)
    (tmp_path / "cache").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / ".result.json.1.part").write_text("{}")
    table = runs(tmp_path)
    assert table["quant"].tolist() == ["b", "a"]
    assert table["clipsim"].tolist() == [0.2, 0.1]
    assert table["folder"].tolist() == [str(tmp_path / "b"), str(tmp_path / "a")]


def test_no_runs_is_an_empty_table(tmp_path):
    assert runs(tmp_path).empty and runs(tmp_path / "nowhere").empty


def test_runs_of_different_fields_share_a_table(tmp_path, finish):
    finish("a", psnr=30.0)
    finish("b")
    assert runs(tmp_path).set_index("quant")["psnr"].isna().to_dict() == {"a": False, "b": True}


def test_unreadable_result_is_unfinished_and_said(tmp_path, finish, caplog):
    finish("a")
    for number, content in enumerate(("", "{", "[]", "null", '{"quant": "asq"}', "\xff")):
        folder = tmp_path / f"damaged{number}"
        folder.mkdir()
        (folder / "result.json").write_text(content, encoding="latin-1")
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="vdq"):
            assert read_result(folder) is None
        assert str(folder / "result.json") in caplog.text
    assert runs(tmp_path)["quant"].tolist() == ["a"]


def test_default_root_is_that_of_the_configuration(tmp_path, finish, monkeypatch):
    (tmp_path / "runs").mkdir()
    os.rename(finish("a"), tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    assert vdq.tracking.runs()["quant"].tolist() == ["a"]
