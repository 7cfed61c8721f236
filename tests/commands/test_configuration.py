"""The reference of the configuration says what the files of conf/ say."""

import re
from pathlib import Path

import yaml

from vdq.commands.configuration import reference

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def test_committed_page_is_up_to_date():
    command = "python -m vdq.commands.configuration docs/configuration.md"
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference(CONF), command


def test_every_option_stands_there_with_its_fields():
    """Oracle: YAML's own reader on the files and on the blocks of the page."""
    sections = re.findall(r"^### `(\S+)=(\S+)`\n(.*?)(?=^##)", reference(CONF) + "\n## end", re.DOTALL | re.MULTILINE)
    found = {}
    for group, option, text in sections:
        [block] = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        found[group, option] = yaml.safe_load(block)
    written = {(path.parent.name, path.stem): yaml.safe_load(path.read_text()) for path in CONF.glob("*/*.yaml")}
    assert found == written


def test_comments_are_kept(tmp_path):
    (tmp_path / "quant").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "quant" / "mine.yaml").write_text("# @package _global_\n# What it\n# is.\nbits: 4 # of weights\n")
    page = reference(tmp_path)
    assert "### `quant=mine`\n\nWhat it is.\n" in page
    assert "# @package _global_\nbits: 4 # of weights\n" in page
