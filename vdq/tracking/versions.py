"""Which versions of the program's code made results, and whether results of several stand in one table."""

from __future__ import annotations

import pandas as pd

EARLIER = "an earlier version"  # of results that were made before versions were kept


def versions_told(runs: pd.DataFrame) -> str:
    """A sentence for notes below a table where its rows come from different versions of the same code; else nothing.

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
