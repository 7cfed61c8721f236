"""Logs finished runs; whatever becomes of that, their result is there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vdq.files import write_text

log = logging.getLogger(__name__)
NOT_LOGGED = "not_logged.txt"  # in the folder of a finished run that could not be logged


def log_finished(tracker: Any, folder: Path, *content: Any, **named: Any) -> None:
    """Logs a finished run with its tracker. Where that fails there is a warning, and the folder `wants_logging`."""
    try:
        write_text(folder / NOT_LOGGED, "This run is finished. Logging it was begun and did not end.\n")
        tracker.log(folder, *content, **named)
        (folder / NOT_LOGGED).unlink()
    except Exception as error:  # of any library
        reason = (str(error).splitlines() or ["no reason given"])[0]
        log.warning(
            "%s is finished but could not be logged (%s: %s); the same command tries again, logger=csv does without",
            *(folder, type(error).__name__, reason),
        )


def wants_logging(folder: Path) -> bool:
    """Whether a finished run could not be logged."""
    return (folder / NOT_LOGGED).exists()
