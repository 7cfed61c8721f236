"""The registry of finished runs: every run folder with a ``result.json``, one row each.

``result.json`` is the last file a run writes, so a folder without it is unfinished, whatever else it holds. So is one
whose scores, record of the sampling or samples were damaged afterwards. Samples that are gone, perhaps to save space,
are no damage.

Results that were made before versions of the code were kept have no `versions`. They are listed as they are; their
signatures are of an earlier version too, so no table of today's runs has them, and a table that shows both says so
(vdq.tracking.versions).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd
import yaml
from safetensors import SafetensorError, safe_open

from vdq.errors import UserError

log = logging.getLogger(__name__)
RESULT = "result.json"
SCORES = "per_video.csv"
RECORDS = ("metrics.json", "sampling.json")


def read_result(folder: Path) -> dict | None:
    """The result of a finished run; None if the run is unfinished or one of its files is damaged, which is logged."""
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        result = _json(path)
        if not {"signature", "metrics", "finished"} <= result.keys():
            raise UserError("it is not the result of a run")
        for path in filter(Path.is_file, (folder / name for name in RECORDS)):
            _json(path)
        path = folder / SCORES
        if path.is_file():
            _check_scores(path, result.get("num_prompts"))
        for path in sorted(folder.glob("samples/*.safetensors")):
            with safe_open(path, "np"):  # reads the header, which has to fit the file's size
                pass
        return result
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("%s cannot be read (%s); the run counts as unfinished", path, error)
        return None


def _json(path: Path) -> dict:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError("it holds no fields")
    return content


def _check_scores(path: Path, count: int | None) -> None:
    rows = len(pd.read_csv(path))
    if count not in (None, rows):
        raise UserError(f"it has {rows} rows instead of {count}")


def read_config(folder: str | Path) -> dict:
    """The configuration that a run was made with, every value resolved; empty if the folder has none."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        return {}
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)  # ten times as fast as OmegaConf's


def runs(root: str | Path = "runs") -> pd.DataFrame:
    """Finished runs below ``root``, one row a run, oldest first; columns are the fields of ``result.json`` and
    ``folder``.
    """
    folders = sorted({path.parent for path in Path(root).glob(f"*/{RESULT}")})
    rows = [{**result, "folder": str(folder)} for folder in folders if (result := read_result(folder))]
    table = pd.DataFrame(rows)
    return table.sort_values("finished", ignore_index=True) if len(table) else table


def processor_of(run: pd.Series | dict) -> str:
    """The processor that sampled a run, and the one that scored it if that is another; earlier results have neither."""
    sampled, scored = run.get("processor"), run.get("scored_on")
    told = [sampled] if isinstance(sampled, str) else []
    if isinstance(scored, str) and scored != sampled:
        told.append(f"scored on {scored}")
    return ", ".join(told) or "not recorded"


def processors_note(processors: pd.Series) -> str:
    """A note for below a table: the processor of all runs, or how many runs each has; empty for no run."""
    counts = processors.value_counts(sort=False)
    if counts.empty:
        return ""
    if len(counts) == 1:
        return f"Processor: {counts.index[0]}."
    listed = "; ".join(f"{name} ({count} of {counts.sum()} runs)" for name, count in counts.items())
    return f"**Processors differ**, and last digits with them: {listed}."
