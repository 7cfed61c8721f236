"""Hooks of MkDocs: files of results/ become part of the site, so that pages can link to them where they are."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ENDINGS = {".csv", ".md", ".png", ".tex"}
OUTSIDE = re.compile(r"(\]\()\.\./((?:\.\./)*results/)")  # as seen from docs/, results/ lies one folder up


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in ENDINGS and "gallery" not in path.parts:
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return OUTSIDE.sub(r"\1\2", markdown)
