"""Keeps the tables in README.md equal to the generated files: ``python -m vdq.tracking.readme``.

What stands between ``<!-- begin FILE -->`` and ``<!-- end FILE -->`` is replaced by FILE without its heading.
"""

from __future__ import annotations

import re
from pathlib import Path

from vdq.files import write_text

BLOCK = re.compile(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def fill(text: str, root: Path) -> str:
    """``text`` with every block filled. Raises ValueError if a block's file is missing."""

    def content(match: re.Match[str]) -> str:
        path = root / match[1]
        if not path.is_file():
            raise ValueError(f"README.md has a block for {match[1]}, which does not exist; `make tables` writes it")
        body = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# "))
        return f"<!-- begin {match[1]} -->\n{body.strip()}\n<!-- end {match[1]} -->"

    return BLOCK.sub(content, text)


if __name__ == "__main__":
    readme = Path("README.md")
    write_text(readme, fill(readme.read_text(encoding="utf-8"), readme.parent))
