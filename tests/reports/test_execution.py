"""Table 6 from files of benchmarks, made up with known times."""

import json
import re

import pandas as pd
import pytest
from PIL import Image

from vdq.benchmark.record import case_record
from vdq.benchmark.rounds import FULL, INTEGER, KERNEL, PEER, SIMULATED, Contender, Round
from vdq.benchmark.work import Peaks, Work
from vdq.reports.execution import FOLDER, latex, read_benchmarks, read_blocks, rows_of, summary, table6, times_figure

PEAKS = Peaks(full=100.0, integer=400.0, full_kernel="mm", integer_kernel="int")
TIMES = {
    (FULL, FULL): 8.0,
    ("dynamic", INTEGER): 4.0,
    ("asq", INTEGER): 2.0,
    ("dynamic, simulated", SIMULATED): 16.0,
    ("asq, simulated", SIMULATED): 12.0,
    ("GEMM", KERNEL): 1.0,
    ("ONNX Runtime static", PEER): 5.0,
}


def benchmark(
    part="sampler", *, model="shapes", measured="2026-01-01", signature="first", scale=None, skipped=None, own=None
):
    """As the stage writes them; `scale` changes the times of one contender and leaves out the others but full."""
    names = [key for key in TIMES if not scale or key[0] in (FULL, *scale)]
    contenders = [
        Contender(name, kind, f"{name} arithmetic", lambda _: None, facts={"weight_bytes": 2e6, "weight_sets": 20})
        for name, kind in names
    ]
    factor = scale or {}
    rounds = [
        Round({name: TIMES[name, kind] * factor.get(name, 1) * drift for name, kind in names}, share)
        for drift, share in ((1, 0.0), (2, 0.0), (3, 0.5))
    ]
    facts = {"key": part, "note": "", "videos": 48 if part == "sampler" else None}
    case = case_record(f"The {part}", contenders, rounds, limit=0.1, work=Work(400, 100), peaks=PEAKS, **facts)
    target = {"target": "as asked", "over": FULL, "least": 2.5, "value": 2.0, "where": "asq", "reached": False}
    machine = {"device": "A CPU", "device_type": "cpu", "dtype": "fp32", "cpus": 2, "threads": 2, "torch": "2.14.1"}
    return {
        "part": part,
        "signature": signature,
        "measured": measured,
        "model": model,
        "bits": "w8a8",
        "machine": machine,
        "peaks": PEAKS._asdict(),
        "skipped": skipped or {},
        "cases": [case],
        "targets": [target] if part == "block" else [],
    } | ({} if own is None else {"own_blocks": own})


@pytest.fixture
def write(tmp_path):
    (tmp_path / FOLDER).mkdir()

    def write(*contents):
        for content in contents:
            path = tmp_path / FOLDER / f"{content['part']}_{content['signature']}.json"
            path.write_text(json.dumps(content))
        return tmp_path

    return write


def test_samplers_of_the_model_and_blocks_of_any(write, caplog):
    runs = write(
        benchmark(signature="late", measured="2026-02-01"),
        benchmark("block", model="other", signature="b"),
        benchmark(model="other", signature="c"),
    )
    (runs / FOLDER / "broken.json").write_text('{"part": "block"')
    (runs / FOLDER / "empty.json").write_text('{"part": "block"}')
    assert [found["signature"] for found in read_benchmarks(runs, "shapes")] == ["b", "late"]
    assert "broken.json cannot be read" in caplog.text and "empty.json cannot be read" in caplog.text
    assert read_benchmarks(runs / "nowhere", "shapes") == []


def test_blocks_of_a_model_are_not_those_of_another(write):
    """Files of before say nothing of it: their block is that of STDiT."""
    own = benchmark("block", model="wan", signature="w", own=True)
    runs = write(benchmark("block", model="other", signature="b", own=False), benchmark("block", signature="old"), own)
    assert {found["signature"] for found in read_benchmarks(runs, "shapes")} == {"b", "old"}
    assert {found["signature"] for found in read_benchmarks(runs, "wan")} == {"b", "old", "w"}
    assert [found["signature"] for found in read_blocks(runs)] == ["w"]


def test_newest_measurement_of_a_contender_counts():
    old, new = benchmark(), benchmark(signature="second", measured="2026-02-01", scale={"asq": 0.5})
    rows = rows_of([old, new]).set_index("name")
    assert len(rows) == len(TIMES)
    assert rows.at["asq", "benchmark"] == "second" and rows.at["asq", "speedup"] == pytest.approx(8.0)
    assert rows.at["dynamic", "benchmark"] == "first" and rows.at["dynamic", "speedup"] == pytest.approx(2.0)


def test_rows_for_programs():
    rows = rows_of([benchmark()]).set_index("name")
    asq = rows.loc["asq"]
    # The third round is disturbed: it counts for the sum of all videos only.
    assert asq["seconds"] == pytest.approx(3.0) and asq["seconds_of_videos"] == pytest.approx(2 + 4 + 6)
    assert (asq["rounds"], asq["rounds_used"], asq["rounds_disturbed"]) == (3, 2, 1)
    assert asq["over_dynamic"] == pytest.approx(2.0) and asq["weight_mb"] == 2.0 and asq["weight_sets"] == 20
    assert asq["floor"] == pytest.approx((400 / 400 + 100 / 100) / 3)
    assert rows.at["asq, simulated", "over_dynamic"] == pytest.approx(16 / 12)
    assert pd.isna(rows.at[FULL, "speedup"])


def test_table_keeps_arithmetics_apart_and_names_its_sources():
    skipped = {"openvino_static": "openvino not installed; pip install -e '.[peers]'"}
    text = table6([benchmark(), benchmark("block", signature="b", skipped=skipped)])
    sections = text.split("\n## ")
    sampler = next(section for section in sections if section.startswith("The sampler"))
    integers = sampler.split("**Real integers**")[1].split("**Simulated")[0]
    assert "| asq " in integers and "simulated" not in integers and "ONNX" not in integers
    assert "4.00x (4.00 to 4.00)" in integers and "2.00x (2.00 to 2.00)" in integers and "`first`" in integers
    assert "seconds of 48 videos" in integers and "12.0" in integers
    assert "w8a8, A CPU, 2 threads, torch 2.14.1" in sampler and "3 rounds; in 1 of them" in sampler
    block = next(section for section in sections if section.startswith("The block"))
    assert "seconds of" not in block
    targets = next(section for section in sections if section.startswith("Targets"))
    assert "| as asked | 2.5x       | 2.00x" in targets and "| no " in targets
    assert "Left out: openvino_static (openvino not installed; pip install -e '.[peers]')." in text
    assert "400 GOP/s" not in text and "0 GOP/s (int): 4.00x" in text
    paper = next(section for section in sections if section.startswith("The paper"))
    line = next(line for line in paper.splitlines() if line.startswith("| asq"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["asq", "1942", "1.16x", "2.00x", "1.33x"]
    assert "A100" in paper and "simulation" in paper


def test_latex_has_every_row_and_escapes_its_text():
    text = latex(rows_of([benchmark(), benchmark("block", signature="b")]))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") >= 6
    for name, kind in TIMES:
        assert name.replace("_", r"\_") in text, (name, kind)
    assert not re.search(r"(?<!\\)[%_]", "\n".join(line for line in text.splitlines() if not line.startswith("%")))


def test_summary_has_the_paper_but_no_case():
    text = summary([benchmark()])
    assert "### The paper's seconds" in text and "| asq      | 1942" in text and "Linear" not in text


def test_paper_stands_alone_without_a_sampler():
    assert "| asq      | 1942             | 1.16x                 | –" in table6([benchmark("block")])


def test_figure_has_a_bar_for_everything_but_kernels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.barh",
        lambda self, names, widths, **_: drawn.append(dict(zip(names, widths, strict=True))),
    )
    times_figure([benchmark(), benchmark("block", signature="b")], tmp_path / "table6.png")
    expected = {name: seconds / 8 for (name, kind), seconds in TIMES.items() if kind != KERNEL}
    assert len(drawn) == 2 and drawn[0] == pytest.approx(expected)
    with Image.open(tmp_path / "table6.png") as picture:
        assert picture.convert("L").getextrema()[0] < 200
