"""A metric says once what its values are: in evaluations, results, the registry and tables."""

import json
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch

from vdq.data.samples import write_sample
from vdq.files import write_json
from vdq.metrics.base import VideoMetric
from vdq.metrics.catalogue import CATALOGUE, Value, value_named, values_of
from vdq.metrics.clip import ClipMetric
from vdq.metrics.dover.metric import DoverMetric
from vdq.metrics.fidelity import FidelityMetric, LatentMetric
from vdq.metrics.fvd import FvdFp16Metric, FvdMetric
from vdq.metrics.lpips import LpipsMetric
from vdq.metrics.retrieval import PromptRetrieval
from vdq.reports.tables import comparison
from vdq.tasks.evaluation import Evaluation, SampleDataset
from vdq.tracking.registry import RESULT, runs

OWN = [ClipMetric, DoverMetric, FidelityMetric, LatentMetric, FvdMetric, FvdFp16Metric, LpipsMetric, PromptRetrieval]


class Darkness(VideoMetric):
    """Of this test alone: 255 less the mean pixel."""

    values = (Value("darkness", "Darkness", digits=1, higher_is_better=False, unit="levels"),)

    def update(self, videos, *, index=None):
        self.validate(videos, index)
        self.record(index, {"darkness": 255 - videos.double().mean((1, 2, 3, 4))})


def test_a_new_metric_is_scored_registered_and_printed_without_another_edit(tmp_path):
    folder = tmp_path / "run"
    for index, level in enumerate((0, 100)):
        frames = torch.full((2, 8, 8, 3), level, dtype=torch.uint8)
        write_sample(folder, index, torch.ones(4, 2, 1, 1), frames, 4)
    task = Evaluation(metrics={"own": Darkness()}, data=SampleDataset(["a", "b"], folder, None), folder=folder)
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.test(task, verbose=False)
    scores = json.loads((folder / "metrics.json").read_text())
    assert scores["values"] == {"darkness": 205}
    own = {"quant": "asq", "bits": "w8a8", "signature": "s", "metrics": "m", "finished": "2026-12-01", "num_prompts": 2}
    write_json(folder / RESULT, own | scores["values"] | {"described": scores["described"]})
    table = runs(tmp_path)
    assert table["darkness"].tolist() == [205]
    header, _, row = (line.split("|") for line in comparison(table).splitlines()[:3])
    assert row[[title.strip() for title in header].index("Darkness levels ↓")].strip() == "205.0"


def test_an_argument_that_no_evaluation_has_is_refused_where_it_is_written():
    with pytest.raises(TypeError, match="Misspelled.update takes video; allowed: videos, prompts"):

        class Misspelled(VideoMetric):
            values = (Value("misspelled"),)

            def update(self, video, *, index=None):
                """Would be left out of every evaluation, since none has a `video`."""


@pytest.mark.parametrize("scores", [[1.0], [1.0, 2.0, 3.0]])
def test_as_many_scores_as_videos(scores):
    with pytest.raises(ValueError, match=f"Darkness has {len(scores)} scores darkness of 2 videos"):
        Darkness().record([0, 1], {"darkness": scores})


def test_the_catalogue_holds_what_the_metrics_of_this_repository_have():
    assert {value for metric in OWN for value in metric.values} == set(CATALOGUE.values())


def test_results_of_earlier_versions_say_the_direction_alone():
    new = {"described": {"darkness": {"name": "darkness", "title": "Darkness", "higher_is_better": False}}}
    old = {"higher_is_better": {"psnr": True, "clipsim_standard": True, "unheard_of": False}, "described": float("nan")}
    headings = [value.heading for value in values_of([old, new]).values()]
    assert headings == ["PSNR dB ↑", "CLIPSIM (standard) ↑", "unheard_of ↓", "Darkness ↓"]


def test_the_longest_name_before_a_label_counts():
    assert value_named("fvd_fp16_other").title == "FVD-FP16 (other)" and value_named("fvd_other").title == "FVD (other)"


def test_a_table_of_results_loads_no_network():
    code = "import sys, vdq.reports.paper_report, vdq.reports.tables; print({'torch', 'open_clip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
