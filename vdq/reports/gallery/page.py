"""The page of a gallery: what it says, and the template it is said in."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

import pandas as pd

from vdq.metrics.catalogue import Value, values_of

RUN_FIELDS = ("signature", "reference", "quant", "bits", "kind", "changed")
MARK = '<meta name="generator" content="vdq gallery">'
GAINS = (1, 4, 16)


def content_of(
    runs: pd.DataFrame, scores: Mapping[str, pd.DataFrame], chosen: Sequence[int], metrics: Sequence[str]
) -> dict:
    """What the script builds the page from; numbers are already text."""
    values = values_of(row for _, row in runs.iterrows())
    ordered = sorted(values.values(), key=lambda value: _place(value.name, metrics))
    prompts = scores[runs["reference"].iloc[0]]["prompt"]
    judges = [assets for assets in runs.get("assets", []) if isinstance(assets, Mapping)]
    return {
        "model": str(runs["model"].iloc[0]),
        "dataset": str(runs["dataset"].iloc[0]),
        "all_prompts": len(prompts),
        "assets": {name: str(assets[name]) for assets in judges for name in sorted(assets)},
        "gains": GAINS,
        "metrics": [
            {"key": value.name, "label": value.label, "up": value.higher_is_better, "brief": value.name in metrics}
            for value in ordered
        ],
        "prompts": [{"index": index, "text": prompts[index]} for index in chosen],
        "runs": [_run(row, values, scores[row["signature"]], chosen) for _, row in runs.iterrows()],
    }


def _place(key: str, metrics: Sequence[str]) -> int:
    return metrics.index(key) if key in metrics else len(metrics)


def _run(row: pd.Series, values: Mapping[str, Value], scores: pd.DataFrame, chosen: Sequence[int]) -> dict:
    return {
        **{field: "" if pd.isna(row[field]) else str(row[field]) for field in RUN_FIELDS},
        "set": {key: _text(value, row.get(key)) for key, value in values.items()},
        "videos": [
            {key: _text(value, scores[key].get(index)) for key, value in values.items() if key in scores}
            for index in chosen
        ],
    }


def _text(value: Value, number: float | None) -> str:
    return value.text(number).replace("inf", "∞")


def _source(content: Mapping) -> str:
    """What made the numbers; they are never those of a paper."""
    judges = "".join(f" {escape(name)} <code>{digest[:10]}</code>" for name, digest in content["assets"].items())
    return (
        f"Model <strong>{escape(content['model'])}</strong>, prompts <strong>{escape(content['dataset'])}</strong>: "
        f"{len(content['prompts'])} of {content['all_prompts']}, evenly spaced. Every number was measured on this "
        f"repository’s own runs of this model; none is a paper’s, and numbers of different models do not compare."
        + (f" Scored with{judges}." if judges else "")
    )


def _made(content: Mapping) -> str:
    """How frames and differences are stored, and what that costs, as measured."""
    tile, source = ("×".join(map(str, content[key])) for key in ("tile", "source"))
    quality, error = content["quality"], content["error"]
    shrunk = f", shrunk to {tile}" if tile != source else ""
    return (
        f"{content['frames']} frames of {source} pixels{shrunk}, {content['fps']:g} a second, as AVIF 4:4:4 of quality "
        f"{quality['video']}: shown frames differ from the sampled by {error['video']:.1f} of 255 levels (RMS). "
        f"Differences were taken between the lossless frames and are stored on their own (quality "
        f"{quality['difference']}, error {error['difference']:.1f} levels before amplification), so that the codec’s "
        f"error in a video is not taken for the method’s. All metrics were taken from the lossless frames."
    )


def html_page(content: Mapping, tables: Mapping[str, str], title: str, note: str) -> str:
    """The page as one file of HTML, style and script; only the media lie beside it.

    Args:
        content: of `content_of`, with the layout of the sheets.
        tables: title -> HTML.
        title: plain text.
        note: HTML below the title.
    """
    parts = files("vdq.reports.gallery")
    style, script = (parts.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    sections = [
        f'<details class="table"{"" if place else " open"}><summary>{escape(name)}</summary>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{html}</div></details>'
        for place, (name, html) in enumerate(tables.items())
    ]
    return Template(parts.joinpath("page.html").read_text("utf-8")).substitute(
        mark=MARK,
        title=escape(title),
        note=note,
        source=_source(content),
        made=_made(content),
        tables="\n".join(sections),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        filters="\n".join(_amplifier(gain) for gain in GAINS),
        data=json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )


def _amplifier(gain: int) -> str:
    """The SVG filter that squares what `media.difference_sheet` stored and multiplies it."""
    functions = "".join(f'<feFunc{c} type="gamma" exponent="2" amplitude="{gain}"/>' for c in "RGB")
    transfer = f"<feComponentTransfer>{functions}</feComponentTransfer>"
    box = 'color-interpolation-filters="sRGB" x="0" y="0" width="1" height="1"'
    return f'<filter id="gain{gain}" {box}>{transfer}</filter>'


def _hash(text: str) -> str:
    """The source that a content security policy allows: this text and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
