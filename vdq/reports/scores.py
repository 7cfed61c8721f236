"""The scores of runs' videos, as their folders have them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from vdq.tracking.registry import SCORES


def per_video(folder: str | Path) -> pd.DataFrame:
    """Scores of a run's videos in the order of the prompts, one row a video."""
    return pd.read_csv(Path(folder) / SCORES).sort_values("index", ignore_index=True)


def key_of(metric: str, columns: Iterable[str]) -> str:
    """The column of a metric of the paper: EvalCrafter's variant where the run has one."""
    labelled = f"{metric}_evalcrafter"
    return labelled if labelled in columns else metric


def videos_of(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows with `run` and `folder` -> `per_video` by run."""
    return {row.run: per_video(row.folder) for row in runs.itertuples()}


def over_seeds(metric: str, runs: Iterable[str], videos: dict[str, pd.DataFrame]) -> np.ndarray:
    """The mean over these runs of every prompt's score."""
    tables = [videos[run] for run in runs]
    return np.mean([table[key_of(metric, table.columns)] for table in tables], axis=0)
