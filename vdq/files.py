"""Writing files and folders so that a reader sees the whole or nothing: temporary name first, then rename."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from vdq.errors import UserError

NO_SPACE = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
DAY = 86400


@contextmanager
def complete_or_nothing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` when the block ends without an error; the folder is
    created. Raises UserError if the disk is full.
    """
    with _temporary(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors writes files that only their owner may read; runs are shared
        os.replace(partial, path)


@contextmanager
def complete_folder_or_nothing(path: Path) -> Iterator[Path]:
    """Yields a new, empty folder that takes the name when the block ends well. A folder that is there is replaced as a
    whole.
    """
    with _temporary(path) as partial, _temporary(path) as replaced:
        partial.mkdir()
        yield partial
        if path.exists():
            os.rename(path, replaced)
        try:
            os.rename(partial, path)
        except OSError:
            if replaced.exists():
                os.rename(replaced, path)
            raise


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new name beside ``path``; what has it in the end is removed. Raises UserError if the disk is full."""
    partial = _temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        yield partial
    except Exception as error:
        if reason := _no_space(error):
            raise UserError(f"{path} cannot be written: {reason}; with more space the same command goes on") from error
        raise
    finally:
        _remove(partial)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # process numbers repeat on other machines


def write_text(path: Path, text: str) -> None:
    with complete_or_nothing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Strict JSON: raises ValueError for NaN and infinity, which most other readers refuse."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _remove_abandoned(path: Path) -> None:
    """Removes what killed processes left of this file; after a day nobody is writing it any more."""
    for old in path.parent.glob(f".{escape(path.name)}.*.part"):
        try:
            if old.stat().st_mtime < time.time() - DAY:
                _remove(old)
        except FileNotFoundError:  # another process was faster
            pass


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _no_space(error: Exception) -> str | None:
    """The system's words for a full disk; libraries wrap them in errors of their own."""
    return next((reason for reason in NO_SPACE if reason in str(error)), None)


def check_folder(field: str, path: str | Path) -> None:
    """Raises UserError that names the field unless the folder can be written to, or can be made. Leaves nothing."""
    path = Path(path)
    try:
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"{field}={path} must be a folder that can be written: {error.strerror}") from error


def check_file(field: str, path: Path) -> None:
    """Raises UserError unless a file can be made there."""
    check_folder(f"{field}: its folder", path.parent)
    check_name(field, path)
    if path.is_dir():
        raise UserError(f"{field}={path} is a folder, must be a file")


def check_name(field: str, path: Path) -> None:
    """Raises UserError that names the field where no file or folder can have this name while it is written."""
    if not path.name:  # the folder where the program was started, or the root
        raise UserError(f"{field}={path} has no name of its own, must have one")
    try:
        _temporary_name(path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{field}={path} is no name of a file or folder: {error.strerror}") from error
