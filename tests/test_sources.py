"""Local paths win, the Hugging Face cache comes next, and what cannot be fetched is explained. Never the network."""

import hashlib
import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, errors

from vdq import sources
from vdq.errors import UserError
from vdq.sources import (
    Download,
    Source,
    check_unmoved,
    find_download,
    find_file,
    find_folder,
    identity,
    sha256,
    without_network,
)

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILE = Source("model.weights.denoiser", "owner/name/sub/weights.pth", REVISION, 3.04)
FOLDER = Source("model.weights.autoencoder", "owner/name", REVISION, 0.3)
PATTERNS = ["*.json", "*.safetensors"]
RESPONSE = SimpleNamespace(headers={}, request=None)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty Hugging Face cache, offline, and a working folder without anything in it."""
    folder, work = tmp_path / "hub", tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def cached(hub, revision):
    """The cache as huggingface_hub lays it out: a folder per repository with one snapshot per commit."""
    return write(hub / "models--owner--name" / "snapshots" / revision / "sub" / "weights.pth", b"cached")


def message(find, *arguments):
    with pytest.raises(ValueError) as caught:
        find(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def command(text):
    return shlex.split(re.search("`(.+)`", text)[1])


def test_local_paths_win_over_the_cache(hub, tmp_path):
    cached(hub, REVISION)
    write(tmp_path / "work" / FILE.value, b"local")
    assert find_file(FILE).read_bytes() == b"local"
    assert find_folder(FOLDER, PATTERNS).resolve() == tmp_path / "work" / "owner" / "name"
    assert find_file(replace(FILE, value=str(tmp_path / "work" / FILE.value))).read_bytes() == b"local"


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "weights.pth", b"home")
    assert find_file(replace(FILE, value="~/weights.pth")) == path
    assert find_folder(replace(FOLDER, value="~"), PATTERNS) == tmp_path


def test_cached_snapshot_of_the_pinned_revision_is_found(hub):
    path = cached(hub, REVISION)
    assert find_file(FILE) == path
    assert find_folder(FOLDER, PATTERNS) == path.parents[1]
    other = "f" * 40
    assert "LocalEntryNotFoundError" in message(find_file, replace(FILE, revision=other))
    assert "LocalEntryNotFoundError" in message(find_folder, replace(FOLDER, revision=other), PATTERNS)


def test_no_revision_means_the_main_branch(hub):
    path = cached(hub, REVISION)
    write(hub / "models--owner--name" / "refs" / "main", REVISION.encode())
    assert find_file(replace(FILE, revision=None)) == path


def test_missing_file_comes_with_size_and_command():
    text = message(find_file, FILE)
    assert text.startswith("model.weights.denoiser=owner/name/sub/weights.pth is not on this machine")
    assert "about 3.04 GB" in text and text.endswith("give its local path as model.weights.denoiser")
    assert command(text) == ["hf", "download", "owner/name", "sub/weights.pth", "--revision", REVISION]
    assert command(message(find_file, replace(FILE, revision=None)))[-1] == "sub/weights.pth"


def test_missing_folder_comes_with_patterns_that_a_shell_does_not_expand():
    text = message(find_folder, FOLDER, PATTERNS)
    assert "about 0.3 GB" in text and "'*.json'" in text
    includes = ["--include", "*.json", "--include", "*.safetensors"]
    assert command(text) == ["hf", "download", "owner/name", *includes, "--revision", REVISION]


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("first line\nsecond line"),
        errors.OfflineModeIsEnabled("offline"),
        errors.HfHubHTTPError("500", response=RESPONSE),
        errors.RepositoryNotFoundError("404", response=RESPONSE),
        errors.RevisionNotFoundError("404", response=RESPONSE),
        errors.RemoteEntryNotFoundError("404", response=RESPONSE),
    ],
    ids=lambda error: type(error).__name__,
)
def test_everything_the_hub_answers_becomes_one_sentence(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(sources, "hf_hub_download", fail)
    monkeypatch.setattr(sources, "snapshot_download", fail)
    for text in (message(find_file, FILE), message(find_folder, FOLDER, PATTERNS)):
        assert f"could not be downloaded ({type(error).__name__})" in text


def test_repository_name_that_the_hub_refuses():
    assert "HFValidationError" in message(find_file, replace(FILE, value="a--b/name/weights.pth"))


@pytest.mark.parametrize(
    "value",
    ["owner/name", "weights.pth", "/no/such/file.pth", "../a/b/file.pth", "a/../b/file.pth", "a//file.pth", "a/b/c/"],
)
def test_values_that_name_no_file(value):
    text = message(find_file, replace(FILE, value=value))
    assert text.startswith(f"model.weights.denoiser={value} must be an existing local file or owner/name/path/to/file")


@pytest.mark.parametrize("value", ["name", "owner/name/file", "/no/folder", "owner/name/", "..a/b.."])
def test_values_that_name_no_folder(value):
    text = message(find_folder, replace(FOLDER, value=value), PATTERNS)
    assert text.startswith(f"model.weights.autoencoder={value} must be an existing local folder or owner/name")


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    path = write(tmp_path / "work" / "owner" / "name" / "file", b"")
    assert "must be an existing local file" in message(find_file, replace(FILE, value=str(path.parent)))
    assert "must be an existing local folder" in message(find_folder, replace(FOLDER, value=str(path)), PATTERNS)
    (path.parent / "folder").mkdir()
    assert "must be an existing local file" in message(find_file, replace(FILE, value="owner/name/folder"))


def test_sha256_of_a_file_in_several_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 1000)
    content = bytes(range(256)) * 40
    path = write(tmp_path / "file", content)
    assert sha256(path, tmp_path / "cache") == hashlib.sha256(content).hexdigest()


def test_sha256_is_remembered_until_size_or_time_changes(tmp_path):
    cache, path = tmp_path / "cache", write(tmp_path / "file", b"old")
    first, status = sha256(path, cache), path.stat()
    path.write_bytes(b"new")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sha256(path, cache) == first  # not read again
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert sha256(path, cache) == hashlib.sha256(b"new").hexdigest()
    path.write_bytes(b"longer")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert sha256(path, cache) == hashlib.sha256(b"longer").hexdigest()


def test_a_link_and_its_target_are_hashed_once(tmp_path):
    """Files of the Hugging Face cache are links to blobs."""
    path = write(tmp_path / "blob", b"content")
    (tmp_path / "link").symlink_to(path)
    assert sha256(tmp_path / "link", tmp_path / "cache") == sha256(path, tmp_path / "cache")
    assert len(json.loads((tmp_path / "cache" / "sha256.json").read_text())) == 1


@pytest.mark.parametrize("damaged", [b"{", b"[]", b"\xff\xfe"])
def test_damaged_record_is_written_again(tmp_path, damaged):
    record, path = write(tmp_path / "cache" / "sha256.json", damaged), write(tmp_path / "file", b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    assert sha256(path, tmp_path / "cache") == digest
    assert list(json.loads(record.read_text()).values()) == [digest]


def test_sha256_of_a_folder_depends_on_names_and_contents(tmp_path):
    def digest(name, **files):
        for file, content in files.items():
            write(tmp_path / name / file.replace("__", "/"), content)
        return sha256(tmp_path / name, tmp_path / "cache")

    first = digest("one", b=b"1", a__c=b"2")
    assert digest("two", a__c=b"2", b=b"1") == first
    others = [digest("3", b=b"2", a__c=b"1"), digest("4", b=b"1", c=b"2"), digest("5", b=b"1"), digest("6", b=b"12")]
    assert len({first, *others}) == 5
    lines = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in [("a/c", b"2"), ("b", b"1")]
    )
    assert first == hashlib.sha256(lines.encode()).hexdigest()


def test_what_a_download_leaves_behind_does_not_count(tmp_path):
    write(tmp_path / "folder" / "config.json", b"{}")
    first = sha256(tmp_path / "folder", tmp_path / "cache")
    write(tmp_path / "folder" / ".cache" / "huggingface" / "config.json.metadata", b"time")
    write(tmp_path / "folder" / ".gitattributes", b"")
    assert sha256(tmp_path / "folder", tmp_path / "cache") == first


def test_progress_is_shown_for_large_files_alone(tmp_path, monkeypatch, capsys):
    sha256(write(tmp_path / "small", b"1"), tmp_path / "cache")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sources, "LARGE", 0)
    sha256(write(tmp_path / "large", b"2"), tmp_path / "cache")
    assert "sha256 of large: 100%" in capsys.readouterr().err


CONTENT = b"published weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def published(tmp_path):
    """A file at an address, which is a local one here."""
    path = write(tmp_path / "there" / "model.pth", CONTENT)
    return Download("metrics.dover.weights", f"{path.as_uri()}?dl=1", DIGEST, 0.1), path


def test_downloads_once_and_takes_a_local_path_before(published, tmp_path):
    download, there = published
    download = replace(download, url=there.as_uri())
    found = find_download(download, None, tmp_path / "cache")
    assert found == tmp_path / "cache" / "model.pth" and found.read_bytes() == CONTENT
    there.unlink()
    assert find_download(download, None, tmp_path / "cache") == found
    own = write(tmp_path / "own.pth", b"mine")
    assert find_download(download, str(own), tmp_path / "cache") == own


def test_name_leaves_the_query_out(published):
    assert published[0].name == "model.pth"


def test_other_content_is_refused_and_not_kept(published, tmp_path):
    download = replace(published[0], url=published[1].as_uri())
    published[1].write_bytes(b"something else")
    text = message(find_download, download, None, tmp_path / "cache")
    assert "metrics.dover.weights=null" in text and "invalid hash" in text
    assert not list((tmp_path / "cache").iterdir())
    write(tmp_path / "cache" / "model.pth", b"damaged")
    assert "not the published file" in message(find_download, download, None, tmp_path / "cache")
    assert find_download(replace(download, sha256=None), None, tmp_path / "cache").read_bytes() == b"damaged"


def test_without_network_the_command_to_fetch_it_is_told(published, tmp_path):
    download = replace(published[0], url=published[1].as_uri())
    published[1].unlink()
    text = message(find_download, download, None, tmp_path / "cache")
    assert "0.1 MB" in text and "give a local path as metrics.dover.weights" in text
    target = str(tmp_path / "cache" / "model.pth")
    assert command(text) == ["curl", "--location", "--create-dirs", "--output", target, download.url]


def test_a_path_that_is_no_file_is_refused(published, tmp_path):
    text = message(find_download, published[0], str(tmp_path / "none.pth"), tmp_path)
    assert text.startswith("metrics.dover.weights=")


def test_published_weights_are_told_apart_by_name_and_revision_without_them(tmp_path):
    assert identity(Source("f", "nobody/nothing/a.pth", "v1", 1.0), tmp_path) == "nobody/nothing/a.pth@v1"
    assert identity(Source("f", "nobody/nothing", None, 1.0), tmp_path) == "nobody/nothing@main"
    file = tmp_path / "a.pth"
    file.write_bytes(b"weights")
    assert identity(Source("f", str(file), "v1", 1.0), tmp_path) == hashlib.sha256(b"weights").hexdigest()


def test_a_branch_that_has_moved_is_refused(tmp_path):
    def path(commit: str) -> Path:
        return Path(f"/hub/models--a--b/snapshots/{commit}/c.pth")

    source = Source("model.weights.denoiser", "a/b/c.pth", "main", 1.0)
    for commit in ("0" * 40, "0" * 40):
        check_unmoved(source, path(commit), tmp_path)
    with pytest.raises(UserError, match=f"^model.weights.denoiser=a/b/c.pth: its revision main was {'0' * 40} when"):
        check_unmoved(source, path("1" * 40), tmp_path)
    check_unmoved(replace(source, revision="1" * 40), path("1" * 40), tmp_path)
    check_unmoved(source, tmp_path / "local.pth", tmp_path)


def test_without_network_nothing_is_asked_for(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with without_network():
        with pytest.raises(UserError, match="nobody/nothing/a.pth is not on this machine"):
            find_file(Source("f", "nobody/nothing/a.pth", None, 1.0))
        with pytest.raises(UserError, match="nobody/nothing is not on this machine"):
            find_folder(Source("f", "nobody/nothing", None, 1.0), ["*"])
        with pytest.raises(UserError, match="cannot be downloaded"):
            find_download(Download("f", "https://example.org/x.bin", None, 1.0), None, tmp_path)
