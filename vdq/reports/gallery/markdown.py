"""The Markdown of this project's tables as HTML: headings, paragraphs, pipe tables, `code`, **bold**, *italic* and
_italic_.

Anything else stays text. A Markdown library would be a dependency for these few lines.
"""

from __future__ import annotations

import re
from html import escape

from vdq.errors import UserError

_CELL = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r":?-+:?")
_INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"<em>\1</em>"),
    (re.compile(r"(?<![\w/])_([^_\s]+)_(?!\w)"), r"<em>\1</em>"),
)


def to_html(text: str) -> str:
    """HTML of Markdown ``text``. Everything is escaped, so the text cannot bring markup of its own."""
    blocks = re.split(r"\n\s*\n", text.strip())
    return "\n".join(_block(block.strip().splitlines()) for block in blocks if block.strip())


def _block(lines: list[str]) -> str:
    if lines[0].startswith("#"):
        rest = "\n" + _block(lines[1:]) if lines[1:] else ""
        return f"<h3>{_inline(lines[0].lstrip('#').strip())}</h3>{rest}"
    if len(lines) > 1 and lines[0].lstrip().startswith("|"):
        return _table(lines)
    return f"<p>{_inline(' '.join(lines))}</p>"


def _table(lines: list[str]) -> str:
    head, rule, *body = ([cell.strip() for cell in _CELL.split(line.strip().strip("|"))] for line in lines)
    if not all(_RULE.fullmatch(cell) for cell in rule):
        raise UserError(f"tables holds {lines[1]!r} below a table's head; only a row of |---| is allowed there")
    rows = "\n".join(f"<tr>{_row(row)}</tr>" for row in body)
    titles = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in head)
    return f"<table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _row(cells: list[str]) -> str:
    return "".join(f"<td>{_inline(cell)}</td>" for cell in cells)


def _inline(text: str) -> str:
    html = escape(text.replace("\\|", "|"))
    for pattern, replacement in _INLINE:
        html = pattern.sub(replacement, html)
    return html
