"""The testbed's quality judge: its card, its held-out ranking, and its training in miniature."""

import json
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from vdq.metrics.dover.model import Dover
from vdq.shapes import train_dover
from vdq.shapes.distortions import DISTORTIONS
from vdq.shapes.dover import WEIGHTS, metric
from vdq.shapes.render import render
from vdq.shapes.scenes import split


def test_ranks_held_out_videos_by_severity():
    """All kinds of damage together, on scenes and severities that training has not seen; VQA-t falls with severity."""
    judge, severities = metric(), []
    scenes = split()["evaluation"]
    technical = {name: kind for name, kind in DISTORTIONS.items() if kind.technical == 1}
    for number in range(96):
        rng = np.random.default_rng([number, 99])
        severity = float(rng.random())
        kind = list(technical.values())[number % len(technical)]
        frames = kind.apply(render(scenes[number % 48], rng), severity, rng)
        judge.update(torch.from_numpy(frames)[None], index=[number])
        severities.append(severity)
    assert spearmanr(judge.per_video()["vqa_t"], severities).statistic <= -0.9


def test_card_tells_the_rank_correlation():
    measured = json.loads(WEIGHTS.with_suffix(".json").read_text())["measured"]
    assert measured["held_out_spearman_technical"] >= 0.9
    assert {f"technical_{name}" for name in DISTORTIONS} <= measured.keys()


def test_names_its_weights_and_is_of_dovers_classes():
    judge = metric()
    assert isinstance(judge.model, Dover) and list(judge.assets) == ["shapes-dover"]
    with pytest.raises(ValueError, match="metrics.dover.weights=nowhere is no file; train it"):
        metric("nowhere")


@pytest.mark.slow
def test_training_in_miniature(tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "autoencoder.safetensors").symlink_to(WEIGHTS.with_name("autoencoder.safetensors"))
    command = ["train_dover", "--weights", str(weights), "--workdir", str(tmp_path / "work")]
    monkeypatch.setattr("vdq.shapes.training.dover.HELD_OUT_VIDEOS", 24)
    monkeypatch.setattr(sys, "argv", [*command, "--set", "steps=2", "epoch_steps=2", "batch_size=2"])
    train_dover.main()
    card = json.loads((weights / "dover.json").read_text())
    assert card["settings"]["steps"] == 2 and card["command"] == "python -m vdq.shapes.train_dover"
    assert metric(str(weights / "dover.safetensors")).assets == {"shapes-dover": card["sha256"]["dover.safetensors"]}
    before = (weights / "dover.json").read_text()
    train_dover.main()
    assert (weights / "dover.json").read_text() == before
