"""Readers see a whole file or none."""

import json
import os
from pathlib import Path

import pytest

from vdq.files import (
    check_file,
    check_folder,
    complete_folder_or_nothing,
    complete_or_nothing,
    write_json,
    write_text,
)


def test_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with complete_or_nothing(path) as partial:
        partial.write_text("half")
        assert not path.exists() and partial.parent == path.parent  # a rename needs the same file system
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), complete_or_nothing(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_partial_file_never_has_the_name_or_the_ending_of_the_file(tmp_path):
    """What a killed process leaves is found by no glob for finished files."""
    with complete_or_nothing(tmp_path / "0001.safetensors") as partial:
        partial.touch()
        assert not list(tmp_path.glob("*.safetensors"))


def test_text_is_utf8_and_json_reads_back(tmp_path):
    write_text(tmp_path / "a.txt", "größer ↑\n")
    assert (tmp_path / "a.txt").read_bytes() == "größer ↑\n".encode()
    content = {"ψ": [1, None, 0.1], "nested": {"a": True}}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


def test_folder_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "folder"
    with complete_folder_or_nothing(path) as partial:
        (partial / "a").write_text("a")
        assert not path.exists() and partial.parent == path.parent
    assert [file.name for file in path.iterdir()] == ["a"]
    with complete_folder_or_nothing(path) as partial:
        (partial / "b").write_text("b")
        assert (path / "a").exists()
    assert [file.name for file in path.iterdir()] == ["b"] and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_keeps_the_old_folder_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(error), complete_folder_or_nothing(path) as partial:
        (partial / "new").touch()
        raise error
    assert (path / "old").exists() and list(tmp_path.iterdir()) == [path]


def test_abandoned_folders_are_removed_after_a_day(tmp_path):
    old, young = tmp_path / ".folder.0a.part", tmp_path / ".folder.0b.part"
    for abandoned in (old, young):
        abandoned.mkdir()
        (abandoned / "weights").touch()
    os.utime(old, (0, 0))
    with complete_folder_or_nothing(tmp_path / "folder"):
        pass
    assert not old.exists() and young.exists()


def test_folders_that_cannot_be_written_are_refused_and_nothing_is_left(tmp_path):
    check_folder("paths.runs", tmp_path / "new" / "runs")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "runs", tmp_path / (300 * "x"), "/proc/x", "/dev/null"):
        with pytest.raises(ValueError, match="^paths.runs=.* must be a folder that can be written: "):
            check_folder("paths.runs", path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", [".", "/", 250 * "x", 300 * "x", "FOLDER", "/proc/x/a", "FILE/a"])
def test_files_that_cannot_be_written_are_refused(tmp_path, monkeypatch, name):
    """250 letters are a name, but not together with what is added to it while the file is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FILE").touch()
    with pytest.raises(ValueError, match="^--out(: its folder)?=\\S+ (has no|is no|is a folder|must be a folder)"):
        check_file("--out", Path(name))
    check_file("--out", Path(200 * "x"))
    check_file("--out", Path("FILE"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "FOLDER"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path, rename = tmp_path / "folder", os.rename
    path.mkdir()
    (path / "old").touch()

    def refused(source, target):
        if Path(source) != path and (Path(source) / "new").exists():
            raise PermissionError("not now")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(PermissionError), complete_folder_or_nothing(path) as partial:
        (partial / "new").touch()
    assert (path / "old").exists() and list(tmp_path.iterdir()) == [path]
