"""The testbed's quality judge: its card, its held-out ranking, and its training in miniature."""

import json
import sys

import numpy as np
import pytest
import torch

from vdq.metrics.dover.model import Dover
from vdq.shapes import train_dover
from vdq.shapes.distortions import DISTORTIONS
from vdq.shapes.dover import WEIGHTS, metric
from vdq.shapes.render import render
from vdq.shapes.scenes import split
from vdq.shapes.training.dover import DoverTraining


def test_ranks_held_out_videos_by_severity_as_its_card_tells():
    """All kinds of damage together, on scenes that training has not seen; scipy's rank correlation."""
    module = DoverTraining(str(WEIGHTS.parent))
    module.net.load_published(WEIGHTS)
    measured = module.measure()
    card = json.loads(WEIGHTS.with_suffix(".json").read_text())["measured"]
    assert measured == pytest.approx(card, abs=2e-3)
    assert measured["held_out_spearman_technical"] >= 0.9
    assert {f"technical_{name}" for name in DISTORTIONS} <= measured.keys()


def test_vqa_falls_with_noise():
    judge, frames = metric(), render(split()["evaluation"][0], np.random.default_rng(0))
    for index, severity in enumerate((0.0, 0.3, 0.6, 1.0)):
        noisy = DISTORTIONS["noise"].apply(frames, severity, np.random.default_rng(1))
        judge.update(torch.from_numpy(noisy)[None], index=[index])
    for values in judge.per_video().values():
        assert values == sorted(values, reverse=True) and 0 <= values[-1] < values[0] <= 100


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
