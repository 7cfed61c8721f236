"""Keeps the tables in README.md and docs/ equal to the generated files: ``python -m vdq.reports.readme``.

What stands between ``<!-- begin FILE -->`` and ``<!-- end FILE -->`` is replaced by FILE without its heading; where
there is no FILE, perhaps since another command writes it, it stays and that is said.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vdq.files import write_text

BLOCK = re.compile(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def fill(text: str, root: Path, name: str = "README.md") -> str:
    """Fills every block of ``text`` from its file below ``root``; ``name`` is what messages call the text."""

    def content(match: re.Match[str]) -> str:
        path = root / match[1]
        if not path.is_file():
            print(f"{name} keeps its block of {match[1]}, which does not exist", file=sys.stderr)
            return match[0]
        body = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# "))
        return f"<!-- begin {match[1]} -->\n{body.strip()}\n<!-- end {match[1]} -->"

    return BLOCK.sub(content, text)


def pages(root: Path) -> list[Path]:
    """The texts that have blocks."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


if __name__ == "__main__":
    for page in pages(Path()):
        write_text(page, fill(page.read_text(encoding="utf-8"), Path(), str(page)))
