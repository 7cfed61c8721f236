"""Tables in README.md and docs/ are those of the generated files."""

import re
from pathlib import Path

import pytest

from vdq.reports.readme import BLOCK, fill, pages

ROOT = Path(__file__).parents[2]

TEXT = (
    "# Title\n\n<!-- begin results/a.md -->\nold\n<!-- end results/a.md -->\n\nbetween\n"
    "<!-- begin b.md -->\n<!-- end b.md -->\n"
)


def test_blocks_are_replaced_by_their_files_without_headings(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("# Heading\n\nText.\n\n| x |\n", encoding="utf-8")
    (tmp_path / "b.md").write_text("ψ ↑\n", encoding="utf-8")
    filled = fill(TEXT, tmp_path)
    assert filled == (
        "# Title\n\n<!-- begin results/a.md -->\nText.\n\n| x |\n<!-- end results/a.md -->\n\nbetween\n"
        "<!-- begin b.md -->\nψ ↑\n<!-- end b.md -->\n"
    )
    assert fill(filled, tmp_path) == filled


def test_block_without_its_file_stays_and_is_named(tmp_path, capsys):
    (tmp_path / "b.md").write_text("new\n", encoding="utf-8")
    filled = fill(TEXT, tmp_path)
    assert "-->\nold\n<!--" in filled and "-->\nnew\n<!--" in filled
    assert "README.md keeps its block of results/a.md, which does not exist" in capsys.readouterr().err


def test_text_without_blocks_stays(tmp_path):
    assert fill("a\nb\n", tmp_path) == "a\nb\n"


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_committed_blocks_are_up_to_date(page):
    """`python -m vdq.reports.readme` would change nothing, and every block has its file."""
    text = page.read_text(encoding="utf-8")
    assert fill(text, ROOT) == text
    assert all((ROOT / match[1]).is_file() for match in BLOCK.finditer(text))


@pytest.mark.parametrize("page", ["README.md", "docs/results/index.md"])
def test_counts_of_claims_in_texts_are_those_of_the_tables(page):
    tables = "\n".join((ROOT / f"results/shapes/table{number}.md").read_text() for number in range(1, 6))
    counts = {
        verdict: len(re.findall(rf"\| {verdict} +\|", tables)) for verdict in ("holds", "does not hold", "within noise")
    }
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    found = re.search(
        r"(\d+) (?:can be asked|claims about).*?(\d+) hold, (\d+) do not hold,? and (\d+) are within noise", text
    )
    assert [int(number) for number in found.groups()] == [sum(counts.values()), *counts.values()]
