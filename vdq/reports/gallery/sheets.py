"""Remembers which frames a gallery's sprite sheets were made from, so that those of an older gallery that still fit are
taken over: encoding is what a gallery costs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vdq.files import write_json
from vdq.reports.gallery.media import SPEED, Sheet

log = logging.getLogger(__name__)
SOURCES = "sheets.json"


class Sheets:
    """The sheets of the gallery ``folder``, which takes the place of the gallery ``older``."""

    def __init__(self, folder: Path, older: Path) -> None:
        self.folder, self.older = folder, older
        self.known = _known(older / SOURCES)
        self.written: dict[str, dict[str, str | float]] = {}

    def write(self, name: str, make: Callable[..., Sheet], *frames: np.ndarray, **settings: int) -> float:
        """Writes ``make(*frames, **settings)`` as media/``name``; returns the squared error of its encoding."""
        source = _source(frames, settings)
        sheet = self._taken_over(name, source) or make(*frames, **settings)
        path = self.folder / "media" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sheet.content)
        self.written[name] = {"source": source, "content": _hash(sheet.content), "squared_error": sheet.squared_error}
        return sheet.squared_error

    def finish(self) -> None:
        """Writes down where every sheet came from."""
        write_json(self.folder / SOURCES, self.written)

    def _taken_over(self, name: str, source: str) -> Sheet | None:
        """The older sheet of the same source, unless its file is missing or is not what was written."""
        known, path = self.known.get(name), self.older / "media" / name
        if known is None or known["source"] != source or not path.is_file():
            return None
        content = path.read_bytes()
        return Sheet(content, known["squared_error"]) if _hash(content) == known["content"] else None


def _known(path: Path) -> dict[str, dict[str, str | float]]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        log.warning("%s cannot be read (%s); all sheets are made again", path, error)
        return {}


def _source(frames: tuple[np.ndarray, ...], settings: dict[str, int]) -> str:
    """Hash of all that decides what a sheet shows; another version of the encoder shows the same."""
    facts = [*(video.shape for video in frames), sorted(settings.items()), SPEED]
    return _hash(repr(facts).encode(), *(np.ascontiguousarray(video) for video in frames))


def _hash(*parts: bytes | np.ndarray) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]
