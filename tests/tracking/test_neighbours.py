"""Tables over recipes, bit-widths and seeds, with made-up runs in them; numpy is the oracle."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vdq.tracking import ablation
from vdq.tracking.claims import GOALS, seeds_of, verdict
from vdq.tracking.neighbours import by_seed, goals, summary, write_neighbours

PROMPTS, SEEDS, BITS = 12, (42, 43, 44), ("w6a6", "w4a8", "w4a4")
PSNR = {"static_plus": 36.0, "tsq_tsw": 32.0, "asq": 31.0, "dynamic": 33.0, "dvd_quant": 34.0}
KINDS = {"dynamic": "dynamic", "dvd_quant": "dynamic"}


@pytest.fixture
def make(tmp_path):
    """A finished run: a row of the registry, and its scores."""

    def make(quant, bits, seed, psnr, changed="", clipsim=0.8, **fields):
        signature = f"{quant}_{bits}_{seed}_{changed}".replace("=", "-")
        rng = np.random.default_rng([seed, len(bits), int(bits[-1], 36)])
        scores = {"clipsim": clipsim + 0.01 * rng.standard_normal(PROMPTS), "top1": rng.integers(0, 2, PROMPTS) * 1.0}
        if quant != "fp16":
            scores["psnr"] = psnr + rng.standard_normal(PROMPTS)
        (tmp_path / signature).mkdir()
        table = pd.DataFrame({"index": range(PROMPTS), "prompt": "", **scores})
        table.sample(frac=1, random_state=0).to_csv(tmp_path / signature / "per_video.csv", index=False)
        act_bits = 16 if bits == "full" else int(bits[-1])
        row = {"quant": quant, "bits": bits, "act_bits": act_bits, "seed": seed, "changed": changed, "model": "shapes"}
        row |= {"kind": KINDS.get(quant, "static"), "size_mb": 2.5, "folder": str(tmp_path / signature)}
        row |= {"stats": "s" if row["kind"] == "static" and quant != "fp16" else None, "signature": signature}
        return row | {"reference": f"fp16_full_{seed}_"} | fields

    return make


@pytest.fixture
def seeds(make):
    """Rows of all recipes; quality falls with the bits, and seeds differ by tenths."""
    rows = [make("fp16", "full", seed, None) for seed in SEEDS]
    for (quant, psnr), bits, seed in product(PSNR.items(), BITS, SEEDS):
        cost = {"calibration_prompts": 10, "calibration_seconds": 20.0 + seed, "quantize_seconds": 1.5}
        if quant == "dvd_quant":
            cost |= {"mean_act_bits": 6.25}
        loss = 6 * BITS.index(bits)
        rows.append(make(quant, bits, seed, psnr - loss + (seed - 43) / 10, clipsim=psnr / 100 - loss / 100, **cost))
    return by_seed(pd.DataFrame(rows))


def test_means_intervals_and_every_seed(seeds):
    row = summary(seeds).set_index(["method", "bits"]).loc["asq", "w4a8"]
    own = seeds[(seeds["method"] == "asq") & (seeds["bits"] == "w4a8")].sort_values("seed")
    videos = [pd.read_csv(f"{folder}/per_video.csv").set_index("index").sort_index() for folder in own["folder"]]
    assert row["psnr"] == pytest.approx(np.mean([table["psnr"] for table in videos]))
    assert [row[f"psnr_{seed}"] for seed in SEEDS] == pytest.approx([table["psnr"].mean() for table in videos])
    prompts = np.mean([table["psnr"] for table in videos], axis=0)  # the prompt is what is drawn, with all its seeds
    means = prompts[np.random.default_rng(5).integers(0, PROMPTS, (20_000, PROMPTS))].mean(1)
    assert [row["psnr_low"], row["psnr_high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)
    full = [f"{folder}/per_video.csv" for folder in seeds[seeds["method"] == "fp16"].sort_values("seed")["folder"]]
    base = [pd.read_csv(path).set_index("index").sort_index()["clipsim"] for path in full]
    paired = np.mean([table["clipsim"] - each for table, each in zip(videos, base, strict=True)], axis=0)
    assert row["clipsim_low"] <= paired.mean() <= row["clipsim_high"]
    spread = paired[np.random.default_rng(6).integers(0, PROMPTS, (20_000, PROMPTS))].mean(1)
    assert [row["clipsim_low"], row["clipsim_high"]] == pytest.approx(np.quantile(spread, [0.025, 0.975]), abs=4e-4)
    assert (row["seeds"], len(row["runs"].split())) == (3, 3)
    assert (row["calibration_seconds"], row["calibration_prompts"]) == (pytest.approx(63.0), 10)


def test_written_for_people_programs_and_papers(seeds, tmp_path):
    write_neighbours(seeds, PROMPTS, tmp_path / "out")
    text = (tmp_path / "out" / "neighbours.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| fp16")
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in lines}
    assert [key[1] for key in list(rows)[2:17:5]] == ["w6a6", "w4a8", "w4a4"]
    for bits in BITS:  # of every bit-width
        assert "**" in rows["static_plus", bits] and "_" in rows["dvd_quant", bits].split("|")[6]
    assert "| none" in rows["dynamic", "w4a4"] and "10 prompts, 63.0 s" in rows["asq", "w4a4"]
    assert (
        "6.25" in rows["dvd_quant", "w4a4"]
        and "4.00" in rows["asq", "w4a4"]
        and "| dynamic  " in rows["dynamic", "w4a4"][5:]
    )
    assert "`asq_w4a4_42_` `asq_w4a4_43_` `asq_w4a4_44_`" in rows["asq", "w4a4"]
    table = pd.read_csv(tmp_path / "out" / "neighbours.csv")
    assert len(table) == 1 + 5 * 3 and table["runs"].str.split().map(len).eq(3).all()
    assert r"\textbf{" in (tmp_path / "out" / "neighbours.tex").read_text()
    with Image.open(tmp_path / "out" / "neighbours.png") as figure:
        assert figure.convert("L").getextrema()[0] < 200


def test_goals_tell_every_seed(seeds):
    rows = goals(seeds)
    assert rows["here"].tolist() == ["holds"] * 3
    assert rows["of each seed"][0].count("seed") == 3 and "tsq_tsw" in rows["of each seed"][0]
    own = (seeds["method"] == "static_plus") & (seeds["bits"] == "w4a8")
    worse = seeds.assign(psnr=seeds["psnr"].where(~(own & (seeds["seed"] == 43)), seeds["psnr"] - 1.1))
    assert goals(worse)["here"].tolist() == ["does not hold", "holds", "holds"]  # one seed is enough
    assert "(+2.90)" in goals(worse)["of each seed"][0]
    tied = seeds.assign(clipsim=0.5)
    assert goals(tied)["here"].tolist() == ["holds", "holds", "does not hold"]


@pytest.mark.parametrize("missing", ["static_plus", "tsq_tsw", "dvd_quant"])
def test_goals_without_a_run_are_not_testable(seeds, missing):
    left = seeds[(seeds["method"] != missing) | (seeds["seed"] != 44) & (missing != "static_plus")]
    verdicts = [verdict(goal, seeds_of(left))[0] for goal in GOALS]
    assert "not testable" in verdicts


def test_changed_recipes_reach_no_goal(seeds):
    changed = seeds.assign(changed=seeds["changed"].where(seeds["method"] != "static_plus", "shift=null"))
    assert set(goals(changed)["here"]) == {"not testable"}


def test_ablation_tells_what_is_left_out_and_what_is_left(make, tmp_path):
    variants = {"": 36.0, "shift=null": 35.0, "rotation=0": 36.5, "shift=null, rotation=0, weights=[a, b]": 32.0}
    variants["rotation=0, weights=[a, b]"] = 33.0
    rows = [make("fp16", "full", seed, None) for seed in SEEDS]
    for (changed, psnr), bits in product(variants.items(), BITS):
        for seed in SEEDS if changed == "" else SEEDS[:1]:  # others are run with fewer seeds
            rows.append(make("static_plus", bits, seed, psnr + seed - 42, changed))
    table = ablation.variants(by_seed(pd.DataFrame(rows)))
    labels = ["static_plus", "without rotation=0", "without shift=null", "only shift", "only the plain recipe"]
    assert table["label"].unique().tolist() == labels
    assert table["bits"].tolist() == list(BITS) * 5
    gains = table[table["bits"] == "w4a4"].set_index("label")["psnr_gain"]
    assert gains.to_dict() == pytest.approx(dict(zip(labels, [0, 0.5, -1, -3, -4], strict=True)))  # of the common seed
    ablation.write_ablation(by_seed(pd.DataFrame(rows)), PROMPTS, tmp_path / "out")
    text = (tmp_path / "out" / "ablation.md").read_text()
    assert "(-1.00)" in text and "`static_plus_w4a4_42_shift-null`" in text
    assert len(pd.read_csv(tmp_path / "out" / "ablation.csv")) == 15


def test_labels_of_few_switches():
    assert ablation.label("", ["a"]) == "static_plus"
    assert ablation.label("a=1", ["a"]) == "without a=1"
    assert ablation.label("a=1, b=2", ["a", "b"]) == "only the plain recipe"
