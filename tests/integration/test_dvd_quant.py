"""DVD-Quant through the whole pipeline: nothing is calibrated, and the bits of every video are on record."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

BITS = ("bits=w4a4", "quant.delta=0.3", "sampler.steps=4", "batch_size=1")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_data_free_run_with_a_schedule_for_every_video(testbed, work, caplog):
    caplog.set_level(logging.INFO)
    folder = testbed.run("quant=dvd_quant", *BITS)
    assert "calibrate: dvd_quant needs no statistics" in caplog.text
    assert "calibrating" not in work and not list(testbed.runs.glob("cache/stats_*"))

    result, report = read(folder / "result.json"), pd.read_csv(folder / "report.csv")
    schedules = [read(folder / "schedules" / f"{index:04d}.json") for index in range(2)]
    bits = [step for schedule in schedules for step in schedule["act_bits"]]
    assert [len(schedule["act_bits"]) for schedule in schedules] == [4, 4] and set(bits) == {4, 8}
    assert result["mean_act_bits"] == read(folder / "sampling.json")["mean_act_bits"] == sum(bits) / 8
    assert (result["kind"], result["stats"], result["weight_bits"], result["act_bits"]) == ("dynamic", None, 4, 4)
    assert set(report["kind"]) == {"dynamic", "full_precision"} and report["mean_act_bits"].isna().all()
    assert (folder / "act_bits.png").stat().st_size > 0


def test_other_methods_have_the_bits_they_were_given(finished):
    run = finished.experiment("quant=tsq_tsw")
    for folder, bits in ((run.folder, 8), (run.reference.folder, None)):
        assert read(folder / "result.json")["mean_act_bits"] == bits
        assert not (folder / "schedules").exists() and not (folder / "act_bits.png").exists()


def test_what_is_sampled_later_counts_as_well(testbed):
    folder = testbed.run("quant=dvd_quant", *BITS)
    before, lost = read(folder / "result.json"), read(folder / "schedules" / "0001.json")
    for path in (folder / "result.json", folder / "samples" / "0001.safetensors", folder / "schedules" / "0001.json"):
        path.unlink()
    testbed.run("quant=dvd_quant", *BITS)
    assert read(folder / "schedules" / "0001.json")["act_bits"] == lost["act_bits"]
    assert read(folder / "result.json")["mean_act_bits"] == before["mean_act_bits"]


def test_a_batch_changes_no_schedule(testbed):
    alone = testbed.run("quant=dvd_quant", *BITS, "stages=[sample]")
    other = replace(testbed, runs=testbed.runs.with_name("other"))
    together = other.run("quant=dvd_quant", *BITS, "stages=[sample]", "batch_size=2")
    assert alone.name == together.name
    for index in range(2):
        ours, theirs = (read(folder / "schedules" / f"{index:04d}.json") for folder in (alone, together))
        assert ours["act_bits"] == theirs["act_bits"] and ours["change"] == pytest.approx(theirs["change"], rel=0.05)


def test_integer_backends_and_static_exports_refuse(testbed):
    with pytest.raises(ValueError, match="^backend=int8_cpu does not run the part per_video; it runs affine"):
        testbed.run("quant=dvd_quant", "backend=int8_cpu", "stages=[sample]")
    with pytest.raises(ValueError, match="onnx_qdq cannot export DVDQuantMethod: its ranges are measured at run time"):
        testbed.run("quant=dvd_quant", "stages=[export]", "export=onnx_qdq")
