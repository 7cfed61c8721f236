"""Columns and legend that say what a method costs beside its bit-widths: bytes, branches, operations."""

from __future__ import annotations

import textwrap

import pandas as pd

from vdq.reports.text import MISSING, number

# Fields of a result (vdq.stages.evaluate) that are averaged over seeds.
COSTS = ("size_mb", "size_mb_fp16", "bits_per_weight", "integer_gmacs", "float_gmacs", "bit_tops")
BRANCHED = "static_plus"
NOTE = """*act bits* is the mean over layers and steps and counts integers alone. *bits a weight* has all that quantized
layers store: codes, scales, zero points, tables and low-rank branches. *float MACs* are the multiply-adds in floating
point of linear layers, those of branches and of layers in full precision, as a share of the integer ones. *bit
operations* are multiply-adds times the bits of both operands, floats with 16, and additions of rotations times 16, in
10^9 of one call of the denoiser for a video; what all methods have alike is left out (products of attention,
elementwise operations). *MB* is the quantized denoiser, with what is not quantized in fp32; the model itself has {fp32}
MB in fp32 and {fp16} MB in fp16."""
BRANCH = """**{method} is not W{weight_bits} on a model this small.** At {bits} its layers store {stored:.1f} bits a
weight, and its branches and the layers in full precision multiply {share:.1%} as much in floating point as the integers
do. The wider a model, the smaller both: `results/sizes_opensora.md` has those of STDiT-XL/2. {beside}"""


def cost_columns(table: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of costs that are printed of a summary, with a dash where a run did not record one."""
    table = table.reindex(columns=[*table.columns, *(name for name in COSTS if name not in table)])
    return {
        "act bits": [number(value, ".2f") for value in table["mean_act_bits"]],
        "bits a weight": [number(value, ".2f") for value in table["bits_per_weight"]],
        "float MACs": [_share(row) for _, row in table.iterrows()],
        "bit operations": [number(1000 * value, ".1f") for value in table["bit_tops"].astype(float)],
        "MB": [number(value, ".2f") for value in table["size_mb"]],
    }


def cost_note(table: pd.DataFrame) -> str:
    """The legend of the columns and, of a method with branches, how its costs compare; empty where nothing is known."""
    known = table.reindex(columns=[*table.columns, *(name for name in COSTS if name not in table)])
    full = known[known["kind"] == "full precision"].dropna(subset="size_mb_fp16")
    if full.empty:
        return ""
    first = full.iloc[0]
    legend_ = NOTE.format(fp32=f"{first['size_mb']:.2f}", fp16=f"{first['size_mb_fp16']:.2f}")
    branched = known[(known["method"] == BRANCHED) & known["bits_per_weight"].notna()]
    if branched.empty:
        return legend_
    widths = branched["bits"].str.extract(r"w(\d+)a")[0].astype(int)
    row = branched.assign(width=widths).sort_values(["width", "psnr"], ascending=[True, False]).iloc[0]
    told = BRANCH.format(
        method=BRANCHED,
        weight_bits=row["width"],
        bits=row["bits"],
        stored=row["bits_per_weight"],
        share=row["float_gmacs"] / row["integer_gmacs"],
        beside=_no_larger(row, known),
    )
    return f"{legend_}\n\n{textwrap.fill(told, 120)}"


def _no_larger(row: pd.Series, table: pd.DataFrame) -> str:
    """The best other methods that take no more bytes than `row`, of all and of those that are static."""
    others = table[(table["method"] != row["method"]) & (table["size_mb"] <= row["size_mb"])].dropna(subset="psnr")
    best = [rows["psnr"].idxmax() for rows in (others, others[others["kind"] == "static"]) if len(rows)]
    told = [
        f"{other['method']} at {other['bits']} ({other['kind']}, {other['size_mb']:.2f} MB, {other['psnr']:.1f} dB)"
        for other in (others.loc[index] for index in dict.fromkeys(best))
    ]
    own = f"It takes {row['size_mb']:.2f} MB for {row['psnr']:.1f} dB"
    return f"{own}; the best other method of no more bytes is {', the best static one '.join(told)}." if told else ""


def _share(row: pd.Series) -> str:
    if pd.isna(row["float_gmacs"]):
        return MISSING
    return f"{row['float_gmacs'] / row['integer_gmacs']:.1%}" if row["integer_gmacs"] else "all"
