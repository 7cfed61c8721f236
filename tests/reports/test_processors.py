"""Two reruns of a table on different processors say the same, or it is told what they say otherwise."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vdq.reports.paper_report import write_table
from vdq.reports.paper_tables import OTHER_NOISE, VALUES, fill
from vdq.reports.processors import changes, differing, main
from vdq.reports.uncertainty import FILE, Noise
from vdq.tracking.registry import runs

PROMPTS = 48
TABLE = {  # means of CLIPSIM, CLIP-temp, VQA-a, VQA-t and PSNR of the testbed's table 1, on a processor with AVX-512
    "fp16": (0.8531, 0.9803, 93.99, 84.18, None),
    OTHER_NOISE: (0.8520, 0.9796, 93.93, 85.89, None),
    "dynamic": (0.8543, 0.9802, 93.99, 83.43, 44.32),
    "cw_tw": (0.8534, 0.9779, 93.99, 84.99, 37.72),
    "tsw": (0.8518, 0.9783, 93.94, 84.33, 39.84),
    "asq": (0.8528, 0.9778, 94.05, 83.78, 39.00),
    "tsq_tsw": (0.8541, 0.9801, 93.99, 84.32, 40.65),
}
RERUN = {"asq": {"vqa_a": -0.06}, "cw_tw": {"clipsim": 0.0015, "vqa_t": -1.4}}  # what one with AVX2 alone made of it
SPREAD = {"clipsim": 0.01, "clip_temp": 0.008, "vqa_a": 0.25, "vqa_t": 5.0, "psnr": 1.5}  # of a difference to fp16
COLUMNS = tuple(value.name for value in VALUES)
NAMES = ("A, AVX512, VNNI", "B, AVX2")


@pytest.fixture
def machine(tmp_path) -> Callable[..., Path]:
    """Makes the folder of runs of table 1 on one processor; every mean is that of TABLE plus what has changed."""

    def make(name: str, changed: dict, folder: str) -> Path:
        for number, (method, means) in enumerate(TABLE.items()):
            rng = np.random.default_rng(number)
            scores = pd.DataFrame({"index": range(PROMPTS)})
            for metric, mean in zip(COLUMNS, means, strict=True):
                if mean is None:
                    continue
                spread = SPREAD[metric] * rng.standard_normal(PROMPTS)
                change = changed.get(method, {}).get(metric, 0)
                if name == NAMES[1]:  # rounding moves single videos
                    spread = spread + 0.2 * SPREAD[metric] * rng.standard_normal(PROMPTS)
                scores[metric] = mean + change + spread - spread.mean()
            run = tmp_path / folder / number_of(method)
            run.mkdir(parents=True)
            scores.to_csv(run / "per_video.csv", index=False)
            result = {"signature": number_of(method), "metrics": "m", "finished": "2026-01-01", "processor": name}
            result |= {"scored_on": name, "quant": method, "bits": "w8a8", "changed": "", "kind": "", "model": "shapes"}
            (run / "result.json").write_text(json.dumps(result | {"assets": {}, "seed": 42}))
        return tmp_path / folder

    return make


def number_of(method: str) -> str:
    return f"run{list(TABLE).index(method)}"


def written(folder: Path, results: Path) -> pd.DataFrame:
    """Writes table 1 of these runs and reads its CSV."""
    found = {run["quant"]: run for _, run in runs(folder).iterrows()}
    write_table("table1", fill("table1", lambda dataset, method, weights, acts: found.get(method)), results)
    return pd.read_csv(results / "table1.csv", dtype={"w_bits": str, "a_bits": str})


def test_bold_cells_and_claims_do_not_depend_on_the_processor(machine, tmp_path):
    """By value alone the rerun has another best CLIPSIM and another best VQA-t. One tie changes, and that is told."""
    folders = [machine(NAMES[0], {}, "first"), machine(NAMES[1], RERUN, "second")]
    tables = [written(folder, tmp_path / f"tables_{folder.name}") for folder in folders]
    quantized = [table[~table["method"].str.startswith("fp16")].set_index("method") for table in tables]
    assert [table["clipsim"].idxmax() for table in quantized] == ["dynamic", "cw_tw"]
    assert [table["vqa_t"].idxmax() for table in quantized] == ["cw_tw", "tsw"]
    registries = [runs(folder) for folder in folders]
    found = differing("table1", tables[0], registries, Noise(changes(*registries)))
    assert found.values.tolist() == [["tsw w8a8 VQA-a", "not marked", "tied"]]  # 0.11 or 0.05 below asq's
    marks = quantized[0]
    assert marks.loc["dynamic", "psnr_mark"] == "best" and (marks["psnr_mark"] == "best").sum() == 1  # by 3.7 dB
    assert set(marks["clipsim_mark"].dropna()) == {"tied"}


def test_what_another_processor_changes_is_measured_by_video(machine):
    registries = [runs(machine(NAMES[0], {}, "first")), runs(machine(NAMES[1], RERUN, "second"))]
    rows = changes(*registries).set_index(["method", "metric"])
    assert rows.loc[("cw_tw", "vqa_t"), "change"] == pytest.approx(-1.4)
    assert rows.loc[("asq", "vqa_a"), ["value", "other_value"]].tolist() == pytest.approx([94.05, 93.99])
    own, again = (
        pd.read_csv(Path(registry["folder"].iloc[0]) / ".." / number_of("tsw") / "per_video.csv")["psnr"]
        for registry in registries
    )
    assert rows.loc[("tsw", "psnr"), "per_video"] == pytest.approx(np.sqrt(np.mean((again - own) ** 2)))
    assert set(rows["processor"]) == {NAMES[0]} and set(rows["other_processor"]) == {NAMES[1]}
    assert ("fp16", "psnr") not in rows.index and set(rows["videos"]) == {PROMPTS}


def test_what_is_said_otherwise_is_listed(machine, tmp_path):
    better = {"asq": {"psnr": 5.0, "vqa_t": -20.0}}  # no rounding is that large
    folders = [machine(NAMES[0], {}, "first"), machine(NAMES[1], better, "second")]
    written(folders[0], tmp_path / "results")
    main(*folders, tmp_path / "results")
    text = (tmp_path / "results" / "processors.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "tied" in rows["asq w8a8 PSNR dB"] and "not marked" in rows["asq w8a8 PSNR dB"]
    claim = rows["ASQ at W8A8 keeps VQA-a and VQA-t within 3 points of full precision."]
    assert "does not hold" in claim and f"{NAMES[0]} against {NAMES[1]}" in text
    assert set(pd.read_csv(tmp_path / "results" / FILE)["metric"]) == set(COLUMNS)


def test_a_table_whose_runs_one_folder_lacks_is_left_out(machine, tmp_path):
    first, second = machine(NAMES[0], {}, "first"), machine(NAMES[1], RERUN, "second")
    table = written(first, tmp_path / "results")
    registry = runs(second)
    registries = [runs(first), registry[registry["quant"] != "asq"]]
    assert differing("table1", table, registries, Noise()) is None
    assert "asq" not in set(changes(*registries)["method"])


def test_runs_of_one_processor_tell_nothing(machine):
    first, second = machine(NAMES[0], {}, "first"), machine(NAMES[0], {}, "second")
    with pytest.raises(ValueError, match="no run in common that was made or scored on different processors"):
        changes(runs(first), runs(second))


def test_a_folder_without_runs_is_named(machine, tmp_path):
    with pytest.raises(ValueError, match="nothing holds no finished run"):
        main(machine(NAMES[0], {}, "first"), tmp_path / "nothing", tmp_path)
