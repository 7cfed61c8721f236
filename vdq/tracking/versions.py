"""Notes where results that different versions of the code made stand in one table."""

from __future__ import annotations

import pandas as pd

EARLIER = "an earlier version"  # of results that were made before versions were kept


def newest(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows without those that an earlier version of some code made, where a later one's are there as well."""
    if "versions" not in runs:
        return runs
    made = [versions if isinstance(versions, dict) else {} for versions in runs["versions"]]
    latest = {name: max(_numbers(made, name)) for one in made for name in one}
    current = [all(latest[name] == number for name, number in one.items()) for one in made]
    return runs[pd.Series(current, index=runs.index, dtype=bool)]


def versions_note(runs: pd.DataFrame) -> str:
    """A note for below a table whose rows come from different versions of the same code; else empty.

    runs: rows of `vdq.tracking.registry.runs`, whose `versions` are numbers by name.
    """
    if runs.empty or "versions" not in runs:
        return ""
    made = [versions if isinstance(versions, dict) else None for versions in runs["versions"]]
    differing = sorted({name for one in made if one for name in one if len(_numbers(made, name)) > 1})
    parts = [f"{name} ({' and '.join(map(str, sorted(_numbers(made, name))))})" for name in differing]
    if (earlier := made.count(None)) and earlier < len(made):
        parts.append(f"{earlier} of {len(made)} runs are of {EARLIER}")
    return f"**Versions differ**, and numbers may with them: {'; '.join(parts)}." if parts else ""


def _numbers(made: list[dict[str, int] | None], name: str) -> set[int]:
    return {versions[name] for versions in made if versions and name in versions}
