"""Scoring any folder of videos as a user does it; Open-Sora's own GIFs where they are at hand."""

import csv
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageSequence
from pytest import approx
from skimage.metrics import peak_signal_noise_ratio

from vdq.data.samples import video_path
from vdq.tracking import runs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def videos(media):
    return media / "videos"


def evaluate(tmp_path, *overrides):
    command = [sys.executable, "run.py", "stages=[evaluate]", "logger=csv", f"paths.runs={tmp_path}", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    file = next(tmp_path.glob("videos_*/result.json"), None)
    return done, file and json.loads(file.read_text()), file and file.parent


def gif(path):
    return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(path))])


def test_open_sora_gif_against_its_full_precision(videos, tmp_path):
    done, result, folder = evaluate(
        tmp_path,
        f"videos={videos / 'turtles_naive_w8a8.gif'}",
        f"reference={videos / 'turtles_fp16.gif'}",
        "metrics=fidelity",
    )
    assert done.returncode == 0, done.stderr
    pairs = zip(gif(videos / "turtles_naive_w8a8.gif"), gif(videos / "turtles_fp16.gif"), strict=True)
    expected = np.mean([peak_signal_noise_ratio(b, a, data_range=255) for a, b in pairs])
    assert result["psnr"] == approx(expected, abs=1e-6) and 0 < result["ssim"] < 1
    assert result["num_videos"] == 1 and result["num_excluded"] == 0
    assert "PSNR dB" in done.stdout and runs(tmp_path).loc[0, "psnr"] == result["psnr"]
    again, same, _ = evaluate(
        tmp_path,
        f"videos={videos / 'turtles_naive_w8a8.gif'}",
        f"reference={videos / 'turtles_fp16.gif'}",
        "metrics=fidelity",
    )
    assert "done on" in again.stdout and same == result


def test_what_cannot_be_scored_is_listed_counted_and_left_out(videos, tmp_path):
    mine, reference = tmp_path / "mine", tmp_path / "reference"
    for path in (mine, reference):
        path.mkdir()
        for name in ("corrupted.mp4", "video_90.mov", "flipping_a_pancake.mkv"):
            shutil.copy(videos / name, path)
    shutil.copy(videos / "turtles_fp16.gif", mine / "alone.gif")
    (mine / "empty.mp4").write_bytes(b"")
    (mine / "lost.mp4").symlink_to("nowhere.mp4")
    (mine / "notes").write_text("no video")
    (reference / "empty.mp4").write_bytes(b"")
    (reference / "flipping_a_pancake.mkv").unlink()
    shutil.copy(videos / "video_90.mov", reference / "flipping_a_pancake.mov")
    arguments = [f"videos={mine}", f"reference={reference}", "metrics=fidelity"]
    done, result, folder = evaluate(tmp_path / "runs", *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: videos={mine} has 5 that could not be scored")
    reasons = {"alone.gif": "no video of that name", "corrupted.mp4": "cannot be decoded", "empty.mp4": "empty file"}
    reasons["flipping_a_pancake.mkv"] = "310x240x426, its reference 3x568x320"
    reasons["lost.mp4"] = "a link to nowhere.mp4"
    assert "not scored: notes: its name does not end like that of a video" in done.stdout
    assert result["excluded"].keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in result["excluded"][name] and f"excluded: {name}" in done.stdout
    assert result["num_videos"] == 1 and result["num_excluded"] == 5
    assert result["psnr"] == 100 and pd.read_csv(folder / "per_video.csv")["file"].tolist() == ["video_90.mov"]
    accepted, _, _ = evaluate(tmp_path / "runs", *arguments, "skip_bad=true")
    assert accepted.returncode == 0


def test_nothing_to_score_is_an_error_and_leaves_no_result(videos, tmp_path):
    done, _, _ = evaluate(
        tmp_path,
        f"videos={videos / 'corrupted.mp4'}",
        f"reference={videos / 'corrupted.mp4'}",
        "metrics=fidelity",
        "skip_bad=true",
    )
    assert done.returncode == 1 and "no video that can be scored" in done.stderr
    assert not list(tmp_path.glob("videos_*"))


def test_a_runs_own_videos_with_prompts_from_a_table(finished, tmp_path, caplog):
    """The same frames through MP4 files: nearly the values of the run itself. First and last pair are told."""
    caplog.set_level(logging.INFO, logger="vdq")
    folder = finished.run("quant=tsq_tsw")
    table = tmp_path / "prompts.csv"
    scores = pd.read_csv(folder / "per_video.csv")
    with table.open("w", newline="") as file:
        rows = [
            [video_path(folder, index).name, text]
            for index, text in zip(scores["index"], scores["prompt"], strict=True)
        ]
        csv.writer(file).writerows([["file", "prompt"], *rows])
    clip = f"metrics.clip.encoder.weights={finished.weights / 'clip.safetensors'}"
    scored = finished.run("stages=[evaluate]", f"videos={folder / 'videos'}", f"prompts={table}", clip)
    found = pd.read_csv(scored / "per_video.csv")
    told = [f"evaluate: {index:04d}.mp4 shows {text!r}" for index, text in zip((0, 1), scores["prompt"], strict=True)]
    assert [message for message in caplog.messages if " shows " in message] == told
    assert json.loads((scored / "result.json").read_text())["reader"] == f"PyAV {av.__version__}"
    assert found["prompt"].tolist() == scores["prompt"].tolist()
    assert found["clipsim"].to_numpy() == approx(scores["clipsim"].to_numpy(), abs=0.2)


def test_the_testbeds_clip_says_which_videos_it_takes(videos, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("turtles\n")
    done, _, _ = evaluate(tmp_path / "r", f"videos={videos / 'turtles_fp16.gif'}", f"prompts={prompts}")
    assert done.returncode == 1 and "shapes-clip takes 64x64 only (metrics=paper" in done.stdout
