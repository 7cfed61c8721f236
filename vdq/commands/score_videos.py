"""Scores any folder of videos: ``'stages=[evaluate]' videos=FOLDER``, with ``prompts`` and ``reference`` if wanted.

No model takes part. What cannot be scored is known before anything is: listed with the reason, left out of every mean
and counted in the result.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from filelock import FileLock
from omegaconf import OmegaConf
from tqdm import tqdm

from vdq.data.folder import Clip, Clips, load_clips, read_clip
from vdq.data.read_video import READER
from vdq.errors import UserError
from vdq.files import write_json, write_text
from vdq.metrics.base import VideoMetric
from vdq.reports.tables import comparison
from vdq.sources import sha256
from vdq.stages.configuration import forced
from vdq.stages.experiment import Experiment
from vdq.stages.identity import signature_of
from vdq.tasks.evaluation import ClipDataset, Evaluation, usable
from vdq.tracking.finished import log_finished
from vdq.tracking.registry import RESULT, read_result

log = logging.getLogger(__name__)


def run(experiment: Experiment) -> Path:
    """Scores ``cfg.videos`` and returns the folder of the result.

    Raises UserError when nothing can be scored and, after the result is written, when something could not be and
    ``skip_bad`` is false.
    """
    cfg = experiment.cfg
    listed = load_clips(cfg.videos, cfg.prompts, cfg.reference)
    _show(listed, cfg.videos)
    clips, excluded = listed.clips, listed.excluded
    signature = signature_of(_content(clips, excluded, Path(cfg.paths.runs) / "cache"))
    folder = Path(cfg.paths.runs) / f"videos_{Path(cfg.videos).resolve().name}_{signature}"
    if (result := _done(experiment, folder)) is None:
        metrics, good, excluded = _scorable(experiment, clips, excluded)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            result = _done(experiment, folder)  # by another process, while this one waited
            result = result or _evaluate(experiment, metrics, good, excluded, folder, signature)
    print(f"\n{comparison(pd.DataFrame([result]))}\n\n{folder}")
    _report(result["excluded"], cfg.videos, cfg.skip_bad)
    return folder


def _show(listed: Clips, videos: str) -> None:
    """What is no video, and the first and the last pair, which show whether prompts are in the videos' order."""
    for name, reason in listed.others.items():
        log.warning("not scored: %s: %s", name, reason)
    log.info("evaluate: %s: %d videos", videos, len(listed.clips))
    for clip in listed.clips[:1] + listed.clips[1:][-1:]:
        prompt = f" shows {clip.prompt!r}" if clip.prompt is not None else ""
        reference = f", its reference is {clip.reference}" if clip.reference is not None else ""
        log.info("evaluate: %s%s%s", clip.path.name, prompt, reference)


def _content(clips: list[Clip], excluded: dict[str, str], cache: Path) -> list:
    """What the result depends on beside the metrics."""
    rows = [
        [clip.path.name, sha256(clip.path, cache), clip.prompt, clip.reference and sha256(clip.reference, cache)]
        for clip in tqdm(clips, desc="hashing", unit="video", delay=2)
    ]
    return [*rows, excluded, READER]


def _done(experiment: Experiment, folder: Path) -> dict | None:
    """The result, if it is there of the same metrics and not to be made again."""
    result = None if "evaluate" in forced(experiment.cfg) else read_result(folder)
    if result and result["metrics"] == experiment.identity.metrics_signature:
        log.info("evaluate: %s: done on %s (force=true repeats it)", folder, result["finished"])
        return result
    return None


def _scorable(
    experiment: Experiment, clips: list[Clip], excluded: dict[str, str]
) -> tuple[dict[str, VideoMetric], list[Clip], dict[str, str]]:
    """The metrics that can be taken, the clips of which, and all others with the reason. Raises UserError if there is
    no metric or no clip.
    """
    data = ClipDataset(clips) if clips else None
    metrics = usable(experiment.metrics, data.inputs) if data else {}
    if data and not metrics:
        raise UserError(f"metrics can take none of videos={experiment.cfg.videos} without prompts or reference")
    progress = tqdm(clips, desc="reading", unit="video", delay=2)
    refused = {clip.path.name: reason for clip in progress if (reason := _reason(clip, metrics))}
    good, excluded = [clip for clip in clips if clip.path.name not in refused], excluded | refused
    if not good:
        _report(excluded, experiment.cfg.videos, skip_bad=True)
        raise UserError(f"videos={experiment.cfg.videos} has no video that can be scored; the reasons are above")
    return metrics, good, excluded


def _evaluate(
    experiment: Experiment,
    metrics: dict[str, VideoMetric],
    clips: list[Clip],
    excluded: dict[str, str],
    folder: Path,
    signature: str,
) -> dict:
    (folder / RESULT).unlink(missing_ok=True)
    task = Evaluation(metrics=metrics, data=ClipDataset(clips), folder=folder, batch_size=1)
    experiment.trainer(precision="32-true").test(task, verbose=False)
    return _finish(experiment, clips, excluded, folder, signature)


def _reason(clip: Clip, metrics: dict[str, VideoMetric]) -> str | None:
    """Why a clip cannot be scored."""
    try:
        video = read_clip(clip.path)
        reference = None if clip.reference is None else read_clip(clip.reference)
    except UserError as error:
        return str(error)
    if reference is not None and reference.shape != video.shape:
        return "it is {}x{}x{}, its reference {}x{}x{} (frames, height, width)".format(
            *video.shape[:3], *reference.shape[:3]
        )
    reasons = (metric.refusal(*video.shape[:3]) for metric in metrics.values())
    return next(filter(None, reasons), None)


def _finish(experiment: Experiment, clips: list[Clip], excluded: dict[str, str], folder: Path, signature: str) -> dict:
    scores, cfg = json.loads((folder / "metrics.json").read_text()), experiment.cfg
    name = Path(cfg.videos).resolve().name
    result = {"name": f"videos_{name}", "dataset": name, "quant": "videos", "bits": "", "kind": "", "changed": ""}
    result |= {"model": "", "size_mb": None, "seed": cfg.seed, "signature": signature, "reference": None}
    result |= scores["values"] | scores["notes"]
    result |= {
        "num_videos": scores["num_videos"],
        "num_excluded": len(excluded),
        "excluded": excluded,
        "reader": READER,
        "versions": experiment.identity.judges,
        "metrics": experiment.identity.metrics_signature,
        "scored_on": scores["machine"]["processor"],
        "described": scores["described"],
        "assets": scores["assets"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(experiment.config())))
    write_json(folder / RESULT, result)
    table = pd.read_csv(folder / "per_video.csv")
    log_finished(
        experiment.tracker,
        folder,
        experiment.config(),
        result,
        metrics=scores["values"],
        per_video=table.assign(**_watchable(clips)),
        report=pd.DataFrame(),
    )
    return result


def _watchable(clips: list[Clip]) -> dict[str, list[str | None]]:
    """Paths of the videos that a browser plays."""

    def shown(path: Path | None) -> str | None:
        return str(path) if path is not None and path.suffix.lower() == ".mp4" else None

    return {"video": [shown(clip.path) for clip in clips], "reference": [shown(clip.reference) for clip in clips]}


def _report(excluded: dict[str, str], videos: str, skip_bad: bool) -> None:
    for name, reason in excluded.items():
        log.warning("excluded: %s: %s", name, reason)
    if excluded and not skip_bad:
        raise UserError(
            f"videos={videos} has {len(excluded)} that could not be scored and are in no mean (listed above and in "
            f"{RESULT}); skip_bad=true accepts that"
        )
