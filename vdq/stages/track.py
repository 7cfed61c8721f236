"""Logging of a finished run with the configured tracker."""

from __future__ import annotations

import json

import pandas as pd

from vdq.data.samples import video_path
from vdq.stages.experiment import Experiment
from vdq.tracking.finished import log_finished


def track(experiment: Experiment, result: dict) -> None:
    """Gives the tracker configuration, result, per-video scores with the videos, and the report of layers."""
    report = experiment.folder / "report.csv"
    log_finished(
        experiment.tracker,
        experiment.folder,
        experiment.config(),
        result,
        metrics=json.loads((experiment.folder / "metrics.json").read_text())["values"],
        per_video=_videos(experiment),
        report=pd.read_csv(report) if report.exists() else pd.DataFrame(),
    )


def _videos(experiment: Experiment) -> pd.DataFrame:
    """The per-video scores with the paths of the video and of its reference."""
    table = pd.read_csv(experiment.folder / "per_video.csv")
    table["video"] = [str(video_path(experiment.folder, index)) for index in table["index"]]
    if experiment.reference is not None:
        table["reference"] = [str(video_path(experiment.reference.folder, index)) for index in table["index"]]
    return table
