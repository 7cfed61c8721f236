"""Filled tables of the paper as Markdown, CSV and LaTeX, with the check of its claims below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from vdq.files import write_text
from vdq.tracking.claims import CLAIMS, values_of, verdict
from vdq.tracking.paper_tables import CONFIDENCE, FIDELITY, METRICS, TITLES, YARDSTICK
from vdq.tracking.tables import METRICS as NAMES

DIGITS = {"clipsim": 4, "clip_temp": 4, "vqa_a": 2, "vqa_t": 2, "psnr": 2}
COMMAND = "python run.py stages=[tabulate]"
TYPO = (
    "The paper's Table III prints 53.9969 for VQA-a of ASQ at W8A8, its Tables I and IV 52.9969; the printed average "
    "26.1451 fits the latter only."
)
TESTBED = (
    "**The testbed's numbers**: its own small model, CLIP and DOVER. They compare methods with each other and never "
    "with the paper, whose numbers stand below for its own claims alone."
)
OTHER = (
    "**Not the paper's setting**, in model, metric networks, prompts, steps or guidance: these numbers compare methods "
    "with each other, and differences to the paper are not shown."
)
CLAIMED = "**What the paper says of it**, asked of the values alone: a difference within the intervals may be chance."
TESTBED_MODEL = "shapes"
MADE_WITH = ("model", "prompts", "seed", "steps", "guidance_scale")
Mark = Callable[[str], str]
MARKDOWN: tuple[Mark, Mark] = (lambda text: f"**{text}**", lambda text: f"_{text}_")
LATEX: tuple[Mark, Mark] = (lambda text: rf"\textbf{{{text}}}", lambda text: rf"\underline{{{text}}}")


def write_table(name: str, table: pd.DataFrame, folder: Path, command: str = COMMAND) -> str:
    """Writes ``folder/name`` as .md, .csv and .tex and returns the Markdown."""
    text = _markdown(name, table, command)
    write_text(folder / f"{name}.md", text)
    write_text(folder / f"{name}.csv", table.to_csv(index=False))
    write_text(folder / f"{name}.tex", _latex(name, table, command))
    return text


def claims_of(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """One row for each of the paper's claims about this table: what our runs and the paper's own numbers say."""
    ours, paper = values_of(table), values_of(table, "paper_")
    rows = []
    for claim in CLAIMS:
        if name not in claim.tables:
            continue
        result, numbers = verdict(claim, ours)
        rows.append(
            {"claim": claim.words, "here": result, "numbers": numbers, "paper's numbers": verdict(claim, paper)[1]}
        )
    return pd.DataFrame(rows)


def _markdown(name: str, table: pd.DataFrame, command: str) -> str:
    shown = cells(table, MARKDOWN)
    body = shown.to_markdown(index=False, disable_numparse=True)
    claims = claims_of(name, table).to_markdown(index=False, disable_numparse=True)
    notes = [
        f"Bold is the best quantized model of a bit-width, italic the second best. In brackets the {CONFIDENCE:.0%} "
        f"interval of the difference to full precision (of PSNR: of the mean), by a paired bootstrap over prompts. "
        f"`{YARDSTICK}` is full precision sampled again with the next seed: what chance alone does. `run` is the run's "
        f"signature."
    ]
    notes += [_setting(name, table), f"Written by `{command}`."]
    paragraphs = "\n\n".join(notes)
    heading = f"# Table {name.removeprefix('table')}: {TITLES[name]}"
    parts = [heading, body, paragraphs, CLAIMED, claims]
    return "\n\n".join(parts) + "\n"


def _setting(name: str, table: pd.DataFrame) -> str:
    """What the runs were made with, and what follows for the paper's numbers; the yardstick's seed is another."""
    own = table[table["method"] != YARDSTICK]
    known = [column for column in MADE_WITH if column in own and own[column].notna().any()]
    made = [f"{column.replace('_scale', '')} {_listed(own[column])}" for column in known]
    if _compared(table):
        meaning = TYPO if name == "table3" else ""
    else:
        meaning = TESTBED if set(own.get("model", pd.Series(dtype=str)).dropna()) == {TESTBED_MODEL} else OTHER
    return f"Runs: {', '.join(made) or 'none'}. {meaning}"


def _listed(values: pd.Series) -> str:
    return " and ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values.dropna().unique())


def _latex(name: str, table: pd.DataFrame, command: str) -> str:
    shown = cells(table, LATEX).map(lambda text: text.replace("`", "").replace("–", "--").replace("_", r"\_"))
    shown.columns = [escaped(title) for title in shown.columns]
    body = tabulate(shown, headers="keys", tablefmt="latex_raw", showindex=False, disable_numparse=True)
    notes = _setting(name, table).replace("*", "")
    return f"% {TITLES[name]}. Written by {command}\n% {notes}\n{body}\n"


def escaped(title: str) -> str:
    return title.replace("↑", r"$\uparrow$").replace("Δ", r"$\Delta$")


def cells(table: pd.DataFrame, marks: tuple[Mark, Mark]) -> pd.DataFrame:
    """What is printed: method, bits, the metrics that any run has, and the run."""
    shown = pd.DataFrame({"method": table["method"], "bits": [_bits(row) for _, row in table.iterrows()]})
    for metric in (*METRICS, *FIDELITY):
        if metric not in table or table[metric].isna().all():
            continue
        title = f"{NAMES[metric]} ↑"
        shown[title] = _column(table, metric, marks)
        if _compared(table) and metric in METRICS:
            paper, digits = table[f"paper_{metric}"], DIGITS[metric]
            shown[f"{NAMES[metric]} paper"] = [_number(value, digits) for value in paper]
            shown[f"{NAMES[metric]} Δ"] = [_number(value, digits, sign="+") for value in table[metric] - paper]
    runs = table["run"] if "run" in table else pd.Series([None] * len(table))
    shown["run"] = [f"`{run}`" if isinstance(run, str) else "–" for run in runs]
    return shown


def _compared(table: pd.DataFrame) -> bool:
    """Whether every run of the table may stand beside the paper's numbers."""
    return "comparable" in table and bool(table["comparable"].dropna().all())


def _column(table: pd.DataFrame, metric: str, marks: tuple[Mark, Mark]) -> list[str]:
    quantized = table[~table["method"].str.startswith("fp16") & (table["w_bits"] != "average")]
    best = {
        bits: rows.dropna().drop_duplicates().nlargest(2).tolist()
        for bits, rows in quantized.groupby(["w_bits", "a_bits"])[metric]
    }
    texts = []
    for _, row in table.iterrows():
        text = _number(row[metric], DIGITS[metric])
        ranked = best.get((row["w_bits"], row["a_bits"]), [])
        if row[metric] in ranked and not row["method"].startswith("fp16"):
            text = marks[ranked.index(row[metric])](text)
        texts.append(text + _interval(row, metric))
    return texts


def _interval(row: pd.Series, metric: str) -> str:
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    if low is None or pd.isna(low):
        return ""
    sign = "" if metric in FIDELITY else "+"
    return f" [{_number(low, DIGITS[metric], sign)}, {_number(high, DIGITS[metric], sign)}]"


def _number(value: float, digits: int, sign: str = "") -> str:
    return "–" if pd.isna(value) else f"{value:{sign}.{digits}f}"


def _bits(row: pd.Series) -> str:
    if row["w_bits"] == "average":
        return "average"
    return "full" if row["method"].startswith("fp16") else f"w{row['w_bits']}a{row['a_bits']}"
