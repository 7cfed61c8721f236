"""Scoring: which metrics, which videos, what is written."""

import json

import pandas as pd
import pytest
import torch
from pytest import approx

from vdq import machine
from vdq.data.samples import write_sample
from vdq.metrics.base import VideoMetric
from vdq.metrics.catalogue import Value
from vdq.metrics.fidelity import LatentMetric
from vdq.tasks.evaluation import Evaluation, SampleDataset

PROMPTS = [f"prompt {number}" for number in range(5)]


class Brightness(VideoMetric):
    """Mean pixel and the number in the prompt."""

    values = (Value("brightness", "Brightness", digits=1), Value("number", higher_is_better=False))

    @property
    def assets(self) -> dict[str, str]:
        return {"lamp": "sha"}

    def update(self, videos, prompts, *, index=None):
        means = videos.double().mean((1, 2, 3, 4)).tolist()
        self.record(index, {"brightness": means, "number": [float(p.split()[1]) for p in prompts]})


@pytest.fixture
def folders(tmp_path):
    for offset, name in enumerate(("run", "reference")):
        for index in range(len(PROMPTS)):
            frames = torch.full((2, 16, 16, 3), 10 * index, dtype=torch.uint8)
            write_sample(tmp_path / name, index, torch.full((4, 2, 4, 4), 1.0 + offset * index), frames, 4)
    return tmp_path / "run", tmp_path / "reference"


def metrics() -> dict[str, VideoMetric]:
    return {"brightness": Brightness(), "latents": LatentMetric()}


def evaluate(trainer, folder, reference, scored):
    data = SampleDataset(PROMPTS, folder, reference)
    task = Evaluation(metrics=scored, data=data, folder=folder, batch_size=2)
    trainer.test(task, verbose=False)
    return json.loads((folder / "metrics.json").read_text()), pd.read_csv(folder / "per_video.csv")


def test_values_of_the_set_and_of_each_video(trainer, folders):
    scores, table = evaluate(trainer, *folders, metrics())
    assert table["index"].tolist() == list(range(5)) and table["prompt"].tolist() == PROMPTS
    assert table["brightness"].tolist() == [0, 10, 20, 30, 40]
    assert table["number"].tolist() == [0, 1, 2, 3, 4]
    # |1 - (1 + i)| / (1 + i)
    expected = [index / (1 + index) for index in range(5)]
    assert table["latent_rel_l2"].tolist() == approx(expected)
    assert scores["values"] == approx({"brightness": 20, "number": 2, "latent_rel_l2": sum(expected) / 5})
    said = {
        name: (each["title"], each["digits"], each["higher_is_better"]) for name, each in scores["described"].items()
    }
    own = {"brightness": ("Brightness", 1, True), "number": ("number", 4, False)}
    assert said == own | {"latent_rel_l2": ("latent L2", 4, False)}
    assert scores["assets"] == {"lamp": "sha"} and scores["num_videos"] == 5
    assert scores["machine"] == machine.describe("cpu")


def test_metrics_of_a_reference_are_left_out_without_one(trainer, folders):
    scores, table = evaluate(trainer, folders[0], None, metrics())
    assert scores["values"].keys() == {"brightness", "number"}
    assert "latent_rel_l2" not in table


def test_scoring_twice_with_the_same_metrics_starts_anew(trainer, folders):
    """As a run and its reference share them."""
    scored = metrics()
    first, _ = evaluate(trainer, *folders, scored)
    second, _ = evaluate(trainer, *folders, scored)
    assert first == second


class Missing(Brightness):
    """Its value of the set is none, although every video has one."""

    def compute(self):
        return super().compute() | {"brightness": float("nan")}


def test_a_set_without_a_number_has_no_result(trainer, folders):
    with pytest.raises(ValueError, match="^brightness has NaN or infinite values; the weights of lamp may be damaged$"):
        evaluate(trainer, *folders, {"missing": Missing()})
    assert not (folders[0] / "metrics.json").exists() and not (folders[0] / "per_video.csv").exists()


def test_damaged_sample_is_not_scored(trainer, folders):
    (folders[0] / "samples" / "0003.safetensors").write_bytes(b"")
    with pytest.raises(Exception, match="[Hh]eader"):
        evaluate(trainer, *folders, metrics())
    assert not (folders[0] / "metrics.json").exists()
