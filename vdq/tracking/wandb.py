"""Logs a run to Weights & Biases through Lightning's logger; offline unless the user is logged in.

Offline W&B keeps no readable summary, so the run folder's own JSON and CSV files are written first and are the truth.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import wandb
from pytorch_lightning.loggers import WandbLogger

from vdq.errors import UserError

log = logging.getLogger(__name__)
MODES = ("online", "offline", "disabled")
OWN_TABLES = {"per_video.csv", "report.csv"}  # of a run folder, logged with videos and under a name of their own


class WandbTracker:
    """One W&B run for each finished run: configuration, signature, metrics, videos beside their references,
    quantization report, and the tables and pictures that its method left in the run folder, such as the bits of steps.

    Runs that can be compared have one group: prompt set, number of prompts and seed. Tags are method, bits and model.
    Everything lies inside the run folder, also what waits to be uploaded. W&B writes the absolute paths of a table's
    files into the record of an offline run, and `wandb sync` has no option that looks elsewhere. So an offline run has
    its videos a second time as plain media, whose paths are relative: these can be moved with it, the tables cannot.
    """

    def __init__(
        self,
        project: str = "vdq",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        mode: str | None = None,
    ) -> None:
        if mode not in (None, *MODES):
            raise UserError(f"logger.mode={mode} must be {', '.join(MODES)} or null (online if logged in)")
        self.project, self.entity, self.group, self.tags, self.mode = project, entity, group, list(tags or []), mode

    def check(self) -> None:
        """Raises UserError when nothing could be logged, before anything is computed."""
        mode = os.environ.get("WANDB_MODE")
        if self.mode is None and mode not in (None, *MODES):
            raise UserError(f"WANDB_MODE={mode} must be one of {', '.join(MODES)}")
        if self._mode() == "online" and not _logged_in():
            raise UserError("logger.mode=online needs an account: run `wandb login`, or take logger.mode=offline")

    def _mode(self) -> str:
        return self.mode or os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")

    def log(
        self, folder: Path, config: dict, result: dict, metrics: dict, per_video: pd.DataFrame, report: pd.DataFrame
    ) -> None:
        """Sends everything at once, after the run's files are complete."""
        with _own_run(folder, is_reference=result["signature"] == result["reference"]):
            # Not made by WandbLogger, which passes an option that W&B warns of.
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=result["name"],
                group=self.group or _group(result),
                tags=list(filter(None, [result["quant"], result["bits"], result["model"], *self.tags])),
                dir=folder,
                resume="allow",
                mode=self._mode(),
                settings=wandb.Settings(silent=True, console="off"),
            )
            logger = WandbLogger(experiment=run)
            logger.log_hyperparams(config)
            logger.log_metrics(metrics)
            run.summary.update({key: value for key, value in result.items() if key not in metrics})
            if len(report):
                logger.log_table("quantization_report", dataframe=report)
            for path in sorted(folder.glob("*.csv")):
                if path.name not in OWN_TABLES:
                    logger.log_table(path.stem, dataframe=pd.read_csv(path))
            pictures = {path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
            if pictures:
                run.log(pictures)
            run.log({"videos": _video_table(per_video)} | (_media(per_video) if run.offline else {}))
        _say_where(run)


@contextmanager
def _own_run(folder: Path, is_reference: bool) -> Iterator[None]:
    """Closes the W&B run whatever happens, has all its files in the run folder, and keeps a reference out of the run
    that a sweep's agent prepared.
    """
    before = dict(os.environ)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID") if is_reference else ():
        os.environ.pop(name, None)
    for kind in ("DATA", "CACHE", "CONFIG"):  # else in the user's home, which need not be writable
        os.environ.setdefault(f"WANDB_{kind}_DIR", str((folder / "wandb" / kind.lower()).resolve()))
    try:
        yield
    finally:
        wandb.finish()
        os.environ.clear()
        os.environ.update(before)


def _group(result: dict) -> str:
    count = f"{result['num_prompts']} prompts" if "num_prompts" in result else f"{result['num_videos']} videos"
    return f"{result['dataset']}, {count}, seed {result['seed']}"


def _say_where(run: wandb.Run) -> None:
    if run.offline:
        folder = Path(os.path.relpath(Path(run.dir).parent))
        log.info("W&B: offline. Look: `wandb leet %s`; upload: `wandb sync %s`", folder, folder)
    elif run.url:
        log.info("W&B: %s", run.url)


def _video_table(per_video: pd.DataFrame) -> wandb.Table:
    """The per-video values with the videos themselves; columns ``video`` and ``reference`` hold paths of MP4 files
    or None.
    """
    table = per_video.copy()
    for column in {"video", "reference"} & set(table.columns):
        table[column] = [wandb.Video(path, format="mp4") if path else None for path in table[column]]
    return wandb.Table(dataframe=table)


def _media(per_video: pd.DataFrame) -> dict[str, list[wandb.Video]]:
    """The videos as plain media, with their prompts, by column."""
    captions = per_video.get("prompt", per_video["index"]).astype(str)
    return {
        f"{column}_files": [
            wandb.Video(path, caption=text, format="mp4") for path, text in zip(paths, captions, strict=True) if path
        ]
        for column, paths in per_video.items()
        if column in ("video", "reference")
    }


def _logged_in() -> bool:
    """Whether there are credentials; they are not checked, so that this works without a network."""
    return wandb.login(prompt=False, verify=False)
