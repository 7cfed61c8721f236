"""Tracking without W&B: Lightning's CSV logger in the run folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
from pytorch_lightning.loggers import CSVLogger


class CsvTracker:
    """Logs the configuration and the metrics of a finished run to ``<run folder>/csv``."""

    def check(self) -> None:
        """Does nothing: the run folder is written by others as well, so nothing can be wrong here."""

    def log(
        self, folder: Path, config: dict, result: dict, metrics: dict, per_video: pd.DataFrame, report: pd.DataFrame
    ) -> None:
        shutil.rmtree(folder / "csv", ignore_errors=True)  # of an earlier scoring
        logger = CSVLogger(folder, name="csv", version="")
        logger.log_hyperparams(config)
        logger.log_metrics(metrics)
        logger.save()
