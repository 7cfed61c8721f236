"""Logs a run to Weights & Biases through Lightning's logger; offline unless the user is logged in.

Offline W&B keeps no readable summary, so the run folder's own JSON and CSV files are written first and are the truth.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pandas as pd
import wandb
from pytorch_lightning.loggers import WandbLogger

log = logging.getLogger(__name__)


class WandbTracker:
    """One W&B run for each finished run: configuration, signature, metrics, videos beside their references,
    quantization report.
    """

    def __init__(
        self,
        project: str = "vdq",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        mode: str | None = None,
    ) -> None:
        if mode not in (None, "online", "offline"):
            raise ValueError(f"logger.mode={mode} must be online, offline or null (online if logged in)")
        self.project, self.entity, self.group, self.tags = project, entity, group, list(tags or [])
        self.offline = mode == "offline" or (mode is None and not _logged_in())

    def log(
        self, folder: Path, config: dict, result: dict, metrics: dict, per_video: pd.DataFrame, report: pd.DataFrame
    ) -> None:
        """Sends everything at once, after the run's files are complete."""
        logger = WandbLogger(
            project=self.project,
            entity=self.entity,
            name=result["name"],
            group=self.group or result["dataset"],
            tags=[result["quant"], result["bits"], result["model"], *self.tags],
            save_dir=folder,
            mode="offline" if self.offline else "online",
            settings=wandb.Settings(silent=True, console="off"),
        )
        logger.log_hyperparams(config)
        logger.log_metrics(metrics)
        logger.experiment.summary.update({key: value for key, value in result.items() if key not in metrics})
        if len(report):
            logger.log_table("quantization_report", dataframe=report)
        logger.experiment.log({"videos": _video_table(per_video)})
        where = logger.experiment.dir
        wandb.finish()
        self._say_where(Path(where).parent, logger)

    def _say_where(self, directory: Path, logger: WandbLogger) -> None:
        if self.offline:
            directory = Path(os.path.relpath(directory))
            log.info("W&B: offline. Look: `wandb leet %s`; upload: `wandb sync %s`", directory, directory)
        else:
            log.info("W&B: %s/%s", self.project, logger.version)


def _video_table(per_video: pd.DataFrame) -> wandb.Table:
    """The per-video values with the videos themselves; columns ``video`` and ``reference`` hold paths of MP4 files
    or None.
    """
    table = per_video.copy()
    for column in {"video", "reference"} & set(table.columns):
        table[column] = [wandb.Video(path, format="mp4") if path else None for path in table[column]]
    return wandb.Table(dataframe=table)


def _logged_in() -> bool:
    try:
        return wandb.login(prompt=False)
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        raise ValueError(f"W&B refuses to log in ({error}); logger.mode=offline does without") from error
