"""Comparison tables, against what is written out here."""

import pandas as pd

from vdq.reports.tables import comparison, write
from vdq.tracking.registry import runs


def cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_values_directions_and_gaps(tmp_path, finish):
    finish("fp16", bits="full", kind="full precision", latent_rel_l2=None, higher_is_better={"clipsim": True})
    finish("asq", clipsim=0.123456, latent_rel_l2=0.0004, size_mb=2.341, finished="2026-01-02")
    assert cells(comparison(runs(tmp_path))) == [
        ["method", "bits", "activations", "CLIPSIM ↑", "latent L2 ↓", "MB", "run"],
        ["fp16", "full", "full precision", "0.2500", "–", "2.50", "`fp16`"],
        ["asq", "w8a8", "static", "0.1235", "0.0004", "2.34", "`asq`"],
    ]


def test_changed_fields_have_a_column_only_where_some_are(tmp_path, finish):
    finish("asq", changed="alpha=0.3")
    finish("tsw", finished="2026-01-02")
    header, first, second = cells(comparison(runs(tmp_path)))
    assert first[header.index("changed")] == "alpha=0.3" and second[header.index("changed")] == ""


def test_integer_backends_have_a_column_only_where_there_are_some(tmp_path, finish):
    finish("asq", backend="")
    assert "integers by" not in cells(comparison(runs(tmp_path)))[0]
    finish("tsw", backend="int8_cpu", finished="2026-01-02")
    header, first, second = cells(comparison(runs(tmp_path)))
    assert first[header.index("integers by")] == "" and second[header.index("integers by")] == "int8_cpu"


def test_metric_without_a_title_keeps_its_name(tmp_path, finish):
    finish("asq", higher_is_better={"dover": True}, dover=0.75)
    header, row = cells(comparison(runs(tmp_path)))
    assert row[header.index("dover ↑")] == "0.7500"


def test_processor_is_named_below_and_beside_the_runs_where_there_are_several(tmp_path, finish):
    finish("asq", processor="A, AVX2", scored_on="A, AVX2")
    assert comparison(runs(tmp_path)).endswith("|\n\nProcessor: A, AVX2.")
    finish("tsw", processor="B, AVX512", scored_on="A, AVX2", finished="2026-01-02")
    text = comparison(runs(tmp_path))
    told = "A, AVX2 (1 of 2 runs); B, AVX512, scored on A, AVX2 (1 of 2 runs)"
    assert text.endswith(f"**Processors differ**, and last digits with them: {told}.")
    header, first, second = cells(text)
    assert (first[-1], second[-1]) == ("A, AVX2", "B, AVX512, scored on A, AVX2") and header[-1] == "processor"


def test_videos_that_were_only_scored_tell_where(tmp_path, finish):
    finish("videos", scored_on="A, AVX2")
    assert comparison(runs(tmp_path)).endswith("Processor: scored on A, AVX2.")


def test_written_for_people_and_for_programs(tmp_path, finish):
    finish("asq", seed=42, alpha=0.5)
    write(runs(tmp_path), tmp_path / "results" / "table", "# Title")
    text = (tmp_path / "results" / "table.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n| method") and text.endswith("|\n\nProcessor: not recorded.\n")
    table = pd.read_csv(tmp_path / "results" / "table.csv")
    assert table.loc[0, ["quant", "clipsim", "seed", "alpha"]].tolist() == ["asq", 0.25, 42, 0.5]
    assert "folder" not in table  # a path of this machine
