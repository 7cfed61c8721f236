"""What is computed again, and what is not: one calibration and one reference serve everything that shares them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest import approx
from safetensors.torch import load_file

from vdq.stages.experiment import Experiment

CALIBRATION, REFERENCE, SCORING = "calibrating", "sampling fp16", "scoring"


def stats_files(bed) -> list[Path]:
    return sorted((bed.runs / "cache").glob("stats_*.safetensors"))


def test_first_run_calibrates_samples_both_and_scores_both(testbed, work):
    testbed.run("quant=cw_tw")
    assert work == [CALIBRATION, REFERENCE, "sampling cw_tw", SCORING, SCORING]


def test_same_command_again_computes_nothing(finished, work):
    before = {path: path.stat().st_mtime_ns for path in finished.runs.rglob("*") if path.name != ".lock"}
    finished.run("quant=tsq_tsw")
    assert work == []
    assert {path: path.stat().st_mtime_ns for path in finished.runs.rglob("*") if path.name != ".lock"} == before


def test_a_finished_run_is_logged_again_for_the_agent_of_a_sweep(finished, monkeypatch):
    class Tracker:
        def __init__(self) -> None:
            self.logged = []

        def check(self) -> None:
            pass

        def log(self, folder, config, result, *, metrics, per_video, report) -> None:
            self.logged.append((result["signature"], metrics["clipsim"], len(per_video), len(report) > 78))

    tracker = Tracker()
    monkeypatch.setattr(Experiment, "tracker", tracker)
    result = json.loads((finished.run("quant=tsq_tsw") / "result.json").read_text())
    assert tracker.logged == []
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    finished.run("quant=tsq_tsw")
    assert tracker.logged == [(result["signature"], result["clipsim"], 2, True)]  # and not of its reference


def test_force_repeats_the_run_but_not_statistics_and_reference(finished, work):
    result = json.loads((finished.run("quant=tsw") / "result.json").read_text())
    work.clear()
    folder = finished.run("quant=tsw", "force=true")
    assert work == ["sampling tsw", SCORING]
    again = json.loads((folder / "result.json").read_text())
    same = {"clipsim", "top1", "latent_rel_l2", "signature", "stats", "reference"}
    assert {key: again[key] for key in same} == approx({key: result[key] for key in same})


def test_statistics_are_made_again_where_force_names_them(testbed, work):
    testbed.run("quant=cw_tw")
    (path,), before = stats_files(testbed), load_file(stats_files(testbed)[0])
    work.clear()
    testbed.run("quant=cw_tw", "force=[calibrate]")
    assert work == [CALIBRATION, "sampling cw_tw", SCORING]
    assert all(torch.equal(value, before[name]) for name, value in load_file(path).items())


@pytest.mark.parametrize("change", ["quant.alpha=0.3", "bits=w4a4", "quant=asq", "quant.num_time_ranges=2"])
def test_alpha_bits_method_and_ranges_need_neither_calibration_nor_reference(finished, work, change):
    before = stats_files(finished)
    folder = finished.run("quant=asq_tsw", change)
    assert work == [f"sampling {'asq' if change == 'quant=asq' else 'asq_tsw'}", SCORING]
    assert stats_files(finished) == before
    assert folder != finished.run("quant=tsq_tsw")


def test_dynamic_needs_no_statistics(testbed, work):
    folder = testbed.run("quant=dynamic")
    assert work == [REFERENCE, "sampling dynamic", SCORING, SCORING]
    assert not stats_files(testbed)
    result = json.loads((folder / "result.json").read_text())
    assert (result["kind"], result["stats"], result["quantized_layers"]) == ("dynamic", None, 78)


def test_full_precision_alone_is_one_run(finished, work):
    folder = finished.run("quant=fp16", "bits=w4a4")
    assert work == []  # it is the reference of the finished run, whatever the bits
    assert folder == next(finished.runs.glob("fp16_*"))


def signatures(bed, *overrides: str) -> tuple[str, str, str]:
    experiment = bed.experiment(*overrides)
    own, reference = experiment.identity, (experiment.reference or experiment).identity
    return own.stats_signature, own.signature, reference.signature


def test_signatures_hold_what_results_depend_on_and_nothing_else(finished, tmp_path):
    stats, run, reference = signatures(finished)
    free = ["batch_size=3", "trainer=ddp", "trainer.precision=64-true", f"paths.results={tmp_path}", "force=true"]
    free += ["~metrics.latents", "stages=[sample]", "logger=wandb", "logger.mode=offline"]
    assert signatures(finished, *free) == (stats, run, reference)
    changed = {
        "seed=1": (1, 1, 1),
        "sampler=iddpm_20": (1, 1, 1),
        "sampler.guidance_scale=5": (1, 1, 1),
        "sampler.steps=4": (1, 1, 1),
        "dataset.num_prompts=3": (0, 1, 1),
        "dataset=shapes_short": (0, 1, 1),
        "quant.alpha=0.4": (0, 1, 0),
        "quant=asq": (0, 1, 0),
        "bits=w4a8": (0, 1, 0),
    }
    for override, expected in changed.items():
        found = signatures(finished, override)
        assert tuple(a != b for a, b in zip(found, (stats, run, reference), strict=True)) == expected, override


def test_signature_follows_the_weights_not_their_path(finished, tmp_path):
    for path in finished.weights.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    moved = f"model.weights={tmp_path}"
    assert signatures(finished, moved) == signatures(finished)
    (tmp_path / "latents.json").write_text('{"scaling_factor": 0.31}')
    assert not set(signatures(finished, moved)) & set(signatures(finished))


def test_batch_size_is_in_no_signature_and_changes_statistics_by_rounding_at_most(finished, tmp_path):
    single = replace(finished, runs=tmp_path / "runs")
    overrides = ("stages=[sample]", "quant=tsq_tsw", "bits=w16a16")
    assert single.run(*overrides, "batch_size=1").name == finished.run(*overrides).name
    a, b = (load_file(stats_files(bed)[0]) for bed in (single, finished))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-6, atol=0)


def test_other_metrics_score_again_without_sampling(finished, work):
    folder = finished.run("quant=tsq_2tr")
    assert "top1" in json.loads((folder / "result.json").read_text())
    work.clear()
    finished.run("quant=tsq_2tr", "~metrics.retrieval")
    assert work == [SCORING, SCORING]
    assert "top1" not in json.loads((folder / "result.json").read_text())
    finished.run("quant=fp16")  # as other tests expect it


@pytest.mark.slow
def test_a_stage_alone_asks_for_what_it_needs(testbed, work):
    testbed.run("stages=[evaluate]", "quant=cw_tw")
    assert work == [REFERENCE, SCORING, CALIBRATION, "sampling cw_tw", SCORING]
