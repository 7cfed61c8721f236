"""Tables in README.md are those of the generated files."""

from vdq.reports.readme import fill

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
