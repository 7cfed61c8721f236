"""Where published files come from: a path on this machine, a repository on huggingface.co or an address, and their
digests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from torch.hub import download_url_to_file
from tqdm import tqdm

from vdq.errors import UserError
from vdq.files import complete_or_nothing, write_json

NAME = r"[\w.-]*\w"
REPOSITORY = rf"({NAME}/{NAME})"
FILE = rf"{REPOSITORY}/({NAME}(?:/{NAME})*)"
NOT_FETCHED = (EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled)
CHUNK = 1 << 23  # bytes read at a time
logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # it tells of every retry
LARGE = 500e6  # bytes; hashing more than that takes seconds
LARGE_DOWNLOAD = 5e6  # bytes; fetching more than that takes seconds


class NotFetchedError(UserError):
    """A file is not on this machine and was not fetched."""


_offline: ContextVar[bool] = ContextVar("offline", default=False)


@contextmanager
def without_network() -> Iterator[None]:
    """Within the block nothing is fetched: what is not on this machine is refused as where there is no internet."""
    token = _offline.set(True)
    try:
        yield
    finally:
        _offline.reset(token)


@dataclass(frozen=True)
class Source:
    """Weights as the user names them.

    ``field`` is the configuration's name for them, such as model.weights.denoiser. ``value`` is a local path,
    owner/name of a Hugging Face repository, or owner/name/path/to/file in one. ``revision`` pins the repository, None
    is its main branch. ``gigabytes`` is the size of the download, for messages.
    """

    field: str
    value: str
    revision: str | None
    gigabytes: float


def named_file(source: Source) -> Path | tuple[str, ...]:
    """What the value names, found without a network: a local file, or repository and file on the Hub.

    Raises UserError when it is neither.
    """
    path = Path(source.value).expanduser()
    return path if path.is_file() else _hub_name(source, path, FILE, "file or owner/name/path/to/file")


def named_folder(source: Source) -> Path | tuple[str, ...]:
    """As `named_file`, for a local folder or a repository."""
    path = Path(source.value).expanduser()
    return path if path.is_dir() else _hub_name(source, path, REPOSITORY, "folder or owner/name")


def identity(source: Source, cache: Path) -> str:
    """What tells weights from others, read from no network: the digest of a local file or folder, which `sha256` keeps
    in ``cache``; of a repository on the Hub its name and revision, whether it was fetched or not.
    """
    path = Path(source.value).expanduser()
    return sha256(path, cache) if path.exists() else f"{source.value}@{source.revision or 'main'}"


def check_unmoved(source: Source, path: Path, cache: Path) -> None:
    """Keeps in ``cache``/commits.json which commit a revision of the Hub was when its files were first used.

    Raises UserError where a branch has moved since then: what was made before came from other weights.
    """
    if (found := re.search(r"/snapshots/([0-9a-f]{40})(/|$)", path.as_posix())) is None:
        return
    record, key, commit = cache / "commits.json", f"{source.value}@{source.revision or 'main'}", found[1]
    known = _read_record(record)
    if known.setdefault(key, commit) != commit:
        raise UserError(
            f"{source.field}={source.value}: its revision {source.revision or 'main'} was {known[key]} when runs were "
            f"made with it and is {commit} now; name one of the two as the revision"
        )
    write_json(record, known)


def find_file(source: Source) -> Path:
    """Local path of one file, downloaded when it is neither a local path nor in the Hugging Face cache.

    Raises UserError when the value is a folder or no name of a file, or when the file cannot be fetched.
    """
    named = named_file(source)
    if isinstance(named, Path):
        return named
    repository, name = named
    try:
        return Path(hf_hub_download(repository, name, revision=source.revision, local_files_only=_offline.get()))
    except NOT_FETCHED as error:
        raise NotFetchedError(_how_to_fetch(source, [repository, name], error)) from error


def find_folder(source: Source, patterns: list[str]) -> Path:
    """Local path of a folder, downloaded as ``find_file`` does it. Of a repository, the files that match one of the
    glob ``patterns`` are fetched.

    Raises UserError when the value is a file or no name of a repository, or when the files cannot be fetched.
    """
    named = named_folder(source)
    if isinstance(named, Path):
        return named
    (repository,) = named
    try:
        local = _offline.get()
        return Path(
            snapshot_download(repository, revision=source.revision, allow_patterns=patterns, local_files_only=local)
        )
    except NOT_FETCHED as error:
        includes = [word for pattern in patterns for word in ("--include", pattern)]
        raise NotFetchedError(_how_to_fetch(source, [repository, *includes], error)) from error


@dataclass(frozen=True)
class Download:
    """A published file at an address. ``sha256`` is None where nobody published one: what comes is then taken as it
    is. ``field`` is the configuration's name for a path that takes its place, ``megabytes`` is for messages.
    """

    field: str
    url: str
    sha256: str | None
    megabytes: float

    @property
    def name(self) -> str:
        return Path(urlparse(self.url).path).name


def find_download(download: Download, path: str | None, cache: Path) -> Path:
    """``path`` if it is given, or else the file in ``cache``, downloaded and compared with its checksum when it is
    not there yet.

    Raises UserError when the path is no file, when the file in the cache is another one, or when it cannot be fetched.
    """
    if path is not None:
        if not Path(path).expanduser().is_file():
            raise UserError(f"{download.field}={path} must be an existing file, or null for {download.url}")
        return Path(path).expanduser()
    target = cache / download.name
    if not target.is_file():
        _fetch(download, target)
    elif download.sha256 not in (None, sha256(target, cache)):
        raise UserError(f"{target} is not the published file (its SHA-256 is not {download.sha256}); remove it")
    return target


def _fetch(download: Download, target: Path) -> None:
    try:
        if _offline.get():
            raise OSError("this command fetches nothing")
        with complete_or_nothing(target) as partial:
            large = download.megabytes * 1e6 > LARGE_DOWNLOAD
            download_url_to_file(download.url, str(partial), hash_prefix=download.sha256, progress=large)
    except (URLError, OSError, RuntimeError) as error:
        reason = (str(getattr(error, "reason", error)).splitlines() or [type(error).__name__])[0]
        command = shlex.join(["curl", "--location", "--create-dirs", "--output", str(target), download.url])
        raise NotFetchedError(
            f"{download.field}=null: {download.url} cannot be downloaded ({reason}); fetch it ({download.megabytes:g} "
            f"MB) with `{command}` where there is internet, or give a local path as {download.field}"
        ) from error


def sha256(path: Path, cache: Path) -> str:
    """Hexadecimal SHA-256 of a file, or of the names and digests of all files in a folder in order of their names.

    Digests are kept in ``cache``/sha256.json and taken from there while a file's size and modification time stay the
    same. Hidden files of a folder are left out: downloads leave their bookkeeping there.
    """
    if path.is_file():
        return _file_sha256(path, cache / "sha256.json")
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    visible = [name for name in names if "/." not in f"/{name}"]
    lines = [f"{_file_sha256(path / name, cache / 'sha256.json')}  {name}\n" for name in visible]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hub_name(source: Source, path: Path, pattern: str, allowed: str) -> tuple[str, ...]:
    """The groups of ``pattern`` in the value, which is no local path of the right kind."""
    match = re.fullmatch(pattern, source.value, re.ASCII)
    if match is None or path.exists():
        raise UserError(f"{source.field}={source.value} must be an existing local {allowed} on huggingface.co")
    return match.groups()


def _how_to_fetch(source: Source, what: list[str], error: Exception) -> str:
    revision = [] if source.revision is None else ["--revision", source.revision]
    command = shlex.join(["hf", "download", *what, *revision])
    return (
        f"{source.field}={source.value} is not on this machine and could not be downloaded ({type(error).__name__}); "
        f"fetch it (about {source.gigabytes:g} GB) with `{command}` where there is internet and give its local path as "
        f"{source.field}"
    )


def _file_sha256(path: Path, record: Path) -> str:
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    known = _read_record(record)
    if key not in known:
        known[key] = digest(path)
        write_json(record, known)
    return known[key]


def _read_record(record: Path) -> dict[str, str]:
    """What is not there or damaged is made again."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, computed now. Raises UserError if it cannot be read."""
    size, found = path.stat().st_size, hashlib.sha256()
    bar = tqdm(total=size, desc=f"sha256 of {path.name}", unit="B", unit_scale=True, disable=size <= LARGE)
    try:
        with path.open("rb") as file, bar:
            while chunk := file.read(CHUNK):
                found.update(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return found.hexdigest()
