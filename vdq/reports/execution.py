"""The paper's table 6, execution time, with real integers, simulated ones and other libraries kept apart."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd
from matplotlib.patches import Rectangle

from vdq.benchmark.plan import SAMPLER
from vdq.benchmark.rounds import FULL, INTEGER, KERNEL, PEER, SIMULATED
from vdq.reports import text
from vdq.reports.paper_tables import paper_rows
from vdq.reports.pictures import panels, save

log = logging.getLogger(__name__)
FOLDER = "benchmarks"  # below paths.runs
KINDS = {
    FULL: "Full precision",
    INTEGER: "Real integers",
    SIMULATED: "Simulated: quantized and dequantized in floating point",
    KERNEL: "Bare matrix products",
    PEER: "Other libraries",
}
COLOURS = {FULL: "tab:gray", INTEGER: "tab:blue", SIMULATED: "tab:orange", KERNEL: "tab:cyan", PEER: "tab:green"}
IDENTITY = ["title", "device", "threads", "dtype", "bits", "name"]
HEADING = """# Table 6: Execution time

Everything of a case was timed in turn in one process. *Speed-up* is full precision's time over the row's in the same
round: median, and quartiles in brackets. *Over dynamic* is the same for the dynamic method of the same arithmetic.
*Floor* is how near the time is to what the machine's own matrix products would need for the same operations, attention
in full precision. *Seconds of N videos* is the sum of all rounds, disturbed or not. *Simulated* arithmetic computes in
floating point and can only be slower than full precision. Prompts are encoded and videos decoded outside of the time.
Written by `python run.py 'stages=[tabulate]'`."""
PAPER = """## The paper's seconds

{table}

For {videos} videos of Open-Sora 1.0 on an {gpu}. The paper gives no time of full precision, and it timed a simulation:
which kernel ran is not stated. So its seconds stand beside no time of ours; ratios to the dynamic method can be read
next to each other."""


def read_benchmarks(runs: Path, model: str) -> list[dict]:
    """Reads what `'stages=[benchmark]'` wrote below a folder of runs, oldest first: the sampler's of this
    model and its blocks if they were measured, and STDiT's linears and block, which are no model's. Damaged ones are
    logged and left out.
    """
    found = _readable(runs)
    return [c for c in found if c["model"] == model or not (c["part"] == SAMPLER or c.get("own_blocks", False))]


def read_blocks(runs: Path) -> list[dict]:
    """Those of blocks and drivers of models that have blocks of their own, oldest first."""
    return [c for c in _readable(runs) if c["part"] != SAMPLER and c.get("own_blocks", False)]


def _readable(runs: Path) -> list[dict]:
    """All that are whole, oldest first."""
    found = []
    for path in sorted((runs / FOLDER).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows_of([content])
            found.append(content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s: %s); it is left out", path, type(error).__name__, error)
    return sorted(found, key=lambda content: content["measured"])


def rows_of(benchmarks: list[dict]) -> pd.DataFrame:
    """One row a contender and case, of the newest benchmark that has it."""
    rows = [_flat(content, case, row) for content in benchmarks for case in content["cases"] for row in case["rows"]]
    return pd.DataFrame(rows).drop_duplicates(IDENTITY, keep="last", ignore_index=True)


def table6(benchmarks: list[dict]) -> str:
    """Markdown of everything that was measured, with the paper's seconds at the end."""
    return "\n\n".join([HEADING, report(benchmarks), _paper(rows_of(benchmarks))]) + "\n"


def latex(rows: pd.DataFrame) -> str:
    """Rows of `rows_of` as LaTeX, a tabular for each case and kind, with its title as a comment."""
    parts = ["% Table 6: Execution time. Written by python run.py 'stages=[tabulate]'"]
    for (title, device, threads, _, bits), case in rows.groupby(IDENTITY[:-1], sort=False):
        for kind, words in KINDS.items():
            own = case[case["kind"] == kind]
            if own.empty:
                continue
            parts.append(f"% {title}, {bits}, {device}, {threads} threads. {words}\n{text.latex(_cells(own))}")
    return "\n\n".join(parts) + "\n"


def summary(benchmarks: list[dict]) -> str:
    """Markdown of the targets and the paper's seconds alone, and what was left out."""
    parts = [_targets(benchmarks), _machine(benchmarks), _paper(rows_of(benchmarks))]
    return "\n\n".join(parts).replace("## ", "### ") + "\n"


def report(benchmarks: list[dict]) -> str:
    """Markdown of the cases, the targets, the peaks and what was left out."""
    rows = rows_of(benchmarks)
    parts = []
    for (title, device, threads, _, bits), case in rows.groupby(IDENTITY[:-1], sort=False):
        parts.append(
            f"## {title}\n\n{bits}, {device}, {threads} threads, torch {', '.join(sorted(set(case['torch'])))}."
        )
        parts += [_rounds(case), *_tables(case)]
    parts += [_targets(benchmarks), _machine(benchmarks)]
    return "\n\n".join(filter(None, parts))


def times_figure(benchmarks: list[dict], path: Path) -> None:
    """Writes horizontal bars of the time relative to full precision, a panel a case."""
    rows = rows_of(benchmarks)
    cases = [case[case["kind"] != KERNEL] for _, case in rows.groupby(IDENTITY[:-1], sort=False)]
    height = sum(0.8 + 0.28 * len(case) for case in cases)
    drawn, axes = panels(len(cases), 1, (9, height), height_ratios=[2 + len(case) for case in cases])
    for axis, case in zip(axes[:, 0], cases, strict=True):
        ordered = case.assign(time=1 / case["speedup"].fillna(1)).sort_values("time", ascending=False)
        axis.barh(ordered["name"], ordered["time"], color=[COLOURS[kind] for kind in ordered["kind"]])
        axis.axvline(1, color="black", lw=0.8)
        axis.set_title(ordered["title"].iloc[0], fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[-1, 0].set_xlabel("time / full precision, median")
    shown = [kind for kind in COLOURS if any((case["kind"] == kind).any() for case in cases)]
    handles = [Rectangle((0, 0), 1, 1, color=COLOURS[kind]) for kind in shown]
    drawn.legend(handles, shown, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False)
    save(drawn, path)


def _flat(content: dict, case: dict, row: dict) -> dict:
    flat = {
        "title": case["title"],
        "key": case["key"],
        **{name: content["machine"][name] for name in ("device", "threads", "dtype", "torch")},
        "bits": content["bits"],
        "model": content["model"] if content["part"] == SAMPLER else "",
        **{name: row[name] for name in ("name", "kind", "computes")},
        "seconds": row["seconds"]["median"],
    }
    for field in ("speedup", "over_dynamic", "over_baseline"):
        ratio = row.get(field, {})
        flat |= {field: ratio.get("median"), f"{field}_low": ratio.get("low"), f"{field}_high": ratio.get("high")}
    videos = case.get("videos")
    return flat | {
        "baseline": row.get("baseline"),
        "floor": row["floor"],
        "error": row.get("error"),
        "weight_mb": row["weight_bytes"] / 1e6 if "weight_bytes" in row else None,
        "weight_sets": row.get("weight_sets"),
        "videos": videos,
        "seconds_of_videos": sum(row["all_seconds"]) if videos else None,
        "rounds": case["rounds"],
        "rounds_used": len(case["rounds_used"]),
        "rounds_disturbed": case["rounds_disturbed"],
        "note": row.get("note", ""),
        "case_note": case["note"],
        "benchmark": content["signature"],
    }


def _tables(case: pd.DataFrame) -> list[str]:
    """One Markdown table for each kind of contender, so that integers and simulation stay apart."""
    found = []
    for kind, words in KINDS.items():
        rows = case[case["kind"] == kind]
        if len(rows):
            found.append(f"**{words}**\n\n{text.markdown(_cells(rows))}")
    return found


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as text; a column that no row fills is left out."""
    total = "seconds of all videos"
    if rows["videos"].notna().any():
        total = f"seconds of {rows['videos'].iloc[0]:.0f} videos"
    shown = {
        "contender": rows["name"],
        "computes": rows["computes"],
        total: [_text(value, ".1f") for value in rows["seconds_of_videos"]],
        "ms": [_text(1000 * value, ".1f") for value in rows["seconds"]],
        "speed-up": _ratios(rows, "speedup"),
        "over dynamic": _ratios(rows, "over_dynamic"),
        "over its own baseline": [
            f"{text}, {name}" if text else ""
            for text, name in zip(_ratios(rows, "over_baseline"), rows["baseline"], strict=True)
        ],
        "floor": [f"{value:.0%}" for value in rows["floor"]],
        "error": [_text(value, ".4f") for value in rows["error"]],
        "weights MB": [_text(value, ".1f") for value in rows["weight_mb"]],
        "weight sets": [_text(value, ".0f") for value in rows["weight_sets"]],
        "note": rows["note"],
        "benchmark": [f"`{value}`" for value in rows["benchmark"]],
    }
    return pd.DataFrame({title: list(cells) for title, cells in shown.items() if any(cells)})


def _rounds(case: pd.DataFrame) -> str:
    first = case.iloc[-1]
    text = f"{first['rounds']} rounds"
    if first["case_note"]:
        text = f"{first['case_note'].capitalize()}. {text}"
    if first["rounds_disturbed"]:
        fate = "were left out" if first["rounds_used"] < first["rounds"] else "were too many to leave out"
        text += f"; in {first['rounds_disturbed']} of them other programs took the CPU, which {fate}"
    return f"{text}."


def _targets(benchmarks: list[dict]) -> str:
    latest = {
        (target["target"], content["machine"]["device"]): target
        for content in benchmarks
        for target in content["targets"]
    }
    if not latest:
        return ""
    rows = [
        {
            "target": target["target"],
            "at least": f"{target['least']}x",
            "measured": "–" if target["value"] is None else f"{target['value']:.2f}x",
            "slowest": target["where"],
            "reached": {True: "yes", False: "no", None: "not measured"}[target["reached"]],
        }
        for target in latest.values()
    ]
    return f"## Targets\n\n{text.markdown(pd.DataFrame(rows))}"


def _machine(benchmarks: list[dict]) -> str:
    lines = []
    for content in {str(content["machine"]): content for content in benchmarks}.values():
        peaks = content["peaks"]
        lines.append(
            f"Peak of {content['machine']['device']}: {peaks['full'] / 1e9:.0f} GOP/s ({peaks['full_kernel']}), "
            f"{peaks['integer'] / 1e9:.0f} GOP/s ({peaks['integer_kernel']}): {peaks['integer'] / peaks['full']:.2f}x."
        )
    skipped = {name: reason for content in benchmarks for name, reason in content["skipped"].items()}
    lines += [f"Left out: {name} ({reason})." for name, reason in skipped.items()]
    return "\n\n".join(lines)


def _paper(rows: pd.DataFrame) -> str:
    paper = paper_rows("table6").set_index("method")
    samplers = rows[rows["key"] == "sampler"]

    def ours(kind: str, method: str) -> str:
        named = samplers["name"].str.split(",").str[0] == method
        found = samplers.loc[named & (samplers["kind"] == kind), "over_dynamic"]
        if method == "dynamic":
            return "–" if found.empty else "1.00x"
        found = found.dropna()
        return "–" if found.empty else f"{found.iloc[-1]:.2f}x"

    table = [
        {
            "method": method,
            "paper, seconds": f"{row['execution_time_s']}",
            "paper, over dynamic": f"{paper.at['dynamic', 'execution_time_s'] / row['execution_time_s']:.2f}x",
            "here, integers, over dynamic": ours(INTEGER, method),
            "here, simulated, over dynamic": ours(SIMULATED, method),
        }
        for method, row in paper.iterrows()
    ]
    return PAPER.format(
        table=text.markdown(pd.DataFrame(table)),
        videos=paper["num_videos"].iloc[0],
        gpu=paper["gpu"].iloc[0],
    )


def _ratios(rows: pd.DataFrame, field: str) -> list[str]:
    columns = (rows[field], rows[f"{field}_low"], rows[f"{field}_high"])
    return [
        "" if pd.isna(median) else f"{median:.2f}x ({low:.2f} to {high:.2f})"
        for median, low, high in zip(*columns, strict=True)
    ]


def _text(value: float | None, form: str) -> str:
    return text.number(value, form, missing="")
