"""Writes filled tables of the paper as Markdown, CSV and LaTeX, with the check of its claims below."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vdq.files import write_text
from vdq.reports.claims import CLAIMS, paper_scores_of, scores_of, verdict
from vdq.reports.marks import LATEX, MARKDOWN, Marks, column
from vdq.reports.paper_tables import OTHER_NOISE, PAPER_VALUES, TITLES, VALUES, limits
from vdq.reports.text import latex, latex_comment, markdown
from vdq.reports.uncertainty import CONFIDENCE, Noise
from vdq.tracking.registry import processors_note

COMMAND = "python run.py 'stages=[tabulate]'"
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
LEGEND = """Bold is the best quantized model of a bit-width, if it beats every other by more than chance: the
{confidence:.0%} interval of their difference, paired over prompts, leaves out zero, and the difference is larger than
that of `{yardstick}` and than what another processor changes. Otherwise `=` marks the best and all that it does not
beat. In brackets the {confidence:.0%} interval of the difference to full precision (of PSNR: of the mean): Student's,
widened for skewness. `{yardstick}` is full precision sampled again with the next seed: what chance alone does.
{measured} `run` is the run's signature."""
CLAIMED = """**What the paper says of it.** It holds here if every difference that it is about says so by more than
chance, as for bold, and does not if one says the opposite by more than chance; else the answer is *within noise*."""
TESTBED_MODEL = "shapes"
MADE_WITH = ("model", "prompts", "seed", "steps", "guidance_scale")


def write_table(
    name: str, table: pd.DataFrame, folder: Path, noise: Noise | None = None, command: str = COMMAND
) -> str:
    """Writes ``folder/name`` as .md, .csv and .tex and returns the Markdown; ``noise`` as the table was filled with."""
    noise = noise or Noise()
    text = _markdown(name, table, noise, command)
    write_text(folder / f"{name}.md", text)
    write_text(folder / f"{name}.csv", table.drop(columns="scores", errors="ignore").to_csv(index=False))
    write_text(folder / f"{name}.tex", _latex(name, table, noise, command))
    return text


def claims_of(name: str, table: pd.DataFrame, noise: Noise | None = None) -> pd.DataFrame:
    """One row for each of the paper's claims about this table: what our runs and the paper's own numbers say."""
    ours, paper, limit = scores_of(table), paper_scores_of(table), limits(table, noise or Noise())
    rows = []
    for claim in CLAIMS:
        if name not in claim.tables:
            continue
        result, numbers = verdict(claim, ours, limit)
        rows.append(
            {"claim": claim.words, "here": result, "numbers": numbers, "paper's numbers": verdict(claim, paper)[1]}
        )
    return pd.DataFrame(rows)


def _markdown(name: str, table: pd.DataFrame, noise: Noise, command: str) -> str:
    body, claims = markdown(cells(table, MARKDOWN)), markdown(claims_of(name, table, noise))
    heading = f"# Table {name.removeprefix('table')}: {TITLES[name]}"
    parts = [heading, body, _legend(noise), _setting(name, table), f"Written by `{command}`.", CLAIMED, claims]
    return "\n\n".join(parts) + "\n"


def _legend(noise: Noise) -> str:
    return LEGEND.format(confidence=CONFIDENCE, yardstick=OTHER_NOISE, measured=noise.words)


def _setting(name: str, table: pd.DataFrame) -> str:
    """What the runs were made with and on, and what follows for the paper's numbers. The row of another noise, which
    has another seed, does not count.
    """
    own = table[table["method"] != OTHER_NOISE]
    known = [column for column in MADE_WITH if column in own and own[column].notna().any()]
    made = [f"{column.replace('_scale', '')} {_listed(own[column])}" for column in known]
    if _compared(table):
        meaning = TYPO if name == "table3" else ""
    else:
        meaning = TESTBED if set(own.get("model", pd.Series(dtype=str)).dropna()) == {TESTBED_MODEL} else OTHER
    processors = processors_note(table["processor"].dropna()) if "processor" in table else ""
    return f"Runs: {', '.join(made) or 'none'}. {processors} {meaning}"


def _listed(values: pd.Series) -> str:
    return " and ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values.dropna().unique())


def _latex(name: str, table: pd.DataFrame, noise: Noise, command: str) -> str:
    notes = latex_comment(f"{_legend(noise)}\n{_setting(name, table)}")
    return f"% {TITLES[name]}. Written by {command}\n{notes}\n{latex(cells(table, LATEX))}\n"


def cells(table: pd.DataFrame, marks: Marks) -> pd.DataFrame:
    """The table as text: method, bits, the metrics that any run has, and the run."""
    shown = pd.DataFrame({"method": table["method"], "bits": [_bits(row) for _, row in table.iterrows()]})
    for value in VALUES:
        if value.name not in table or table[value.name].isna().all():
            continue
        shown[value.heading] = column(table, value, marks)
        if _compared(table) and value in PAPER_VALUES:
            paper = table[f"paper_{value.name}"]
            shown[f"{value.label} paper"] = [value.text(number) for number in paper]
            shown[f"{value.label} Δ"] = [value.text(number, "+") for number in table[value.name] - paper]
    runs = table["run"] if "run" in table else pd.Series([None] * len(table))
    shown["run"] = [f"`{run}`" if isinstance(run, str) else "–" for run in runs]
    return shown


def _compared(table: pd.DataFrame) -> bool:
    """Whether every run of the table may stand beside the paper's numbers."""
    return "comparable" in table and bool(table["comparable"].dropna().all())


def _bits(row: pd.Series) -> str:
    if row["w_bits"] == "average":
        return "average"
    return "full" if row["method"].startswith("fp16") else f"w{row['w_bits']}a{row['a_bits']}"
