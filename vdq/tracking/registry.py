"""The registry of finished runs: every run folder with a ``result.json``, one row each.

``result.json`` is the last file a run writes, so a folder without it is unfinished, whatever else it holds.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd

log = logging.getLogger(__name__)
RESULT = "result.json"


def read_result(folder: Path) -> dict | None:
    """The result of a finished run, or None if the run is unfinished or its result cannot be read (which is logged)."""
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or not {"signature", "metrics", "finished"} <= result.keys():
            raise ValueError("it is not the result of a run")
        return result
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s); the run counts as unfinished", path, error)
        return None


def runs(root: str | Path = "runs") -> pd.DataFrame:
    """Finished runs below ``root``, one row a run, oldest first; columns are the fields of ``result.json`` and
    ``folder``.
    """
    folders = sorted({path.parent for path in Path(root).glob(f"*/{RESULT}")})
    rows = [{**result, "folder": str(folder)} for folder in folders if (result := read_result(folder))]
    table = pd.DataFrame(rows)
    return table.sort_values("finished", ignore_index=True) if len(table) else table
