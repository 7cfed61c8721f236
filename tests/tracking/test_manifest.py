"""What produced a result, read back against git and the packages themselves."""

import platform
import subprocess
from pathlib import Path

import pytest
import torch

from vdq.tracking import manifest


def test_versions_and_content():
    content = manifest.manifest({"signature": "s"}, {"dtype": "float32"})
    assert content["result"] == {"signature": "s"} and content["execution"] == {"dtype": "float32"}
    assert content["versions"]["python"] == platform.python_version()
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one commit, of which the package is part."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")
    (tmp_path / "file.py").write_text("1\n")
    for command in ("init", "add .", "commit -m one", "tag -a v1 -m one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "file.py"))
    return tmp_path


def test_commit_of_a_checkout_and_whether_it_was_changed(checkout):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True)
    assert manifest.git_commit() == head.stdout.strip()
    (checkout / "file.py").write_text("2\n")
    assert manifest.git_commit() == head.stdout.strip() + "-dirty"


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "file.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert manifest.git_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifest.git_commit() is None
