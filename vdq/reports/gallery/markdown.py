"""The Markdown of this project's tables as HTML for the page."""

from __future__ import annotations

from markdown_it import MarkdownIt

# No links and no pictures: the page opens from disk and asks for nothing elsewhere.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["autolink", "image", "link"])


def to_html(text: str) -> str:
    """HTML of Markdown ``text``, its headings all of the third level. HTML within it is shown as text."""
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "h3"
        elif token.type == "th_open":
            token.attrs = {"scope": "col"}
        elif token.type == "td_open":
            token.attrs = {}  # alignment would be a style, which the page's security policy refuses
    return _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}).strip()
