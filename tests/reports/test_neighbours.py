"""Tables over methods, bit-widths and seeds, with made-up runs in them; numpy is the oracle."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from vdq.reports import ablation
from vdq.reports.claims import GOALS, seed_scores_of, verdict
from vdq.reports.neighbours import by_seed, goals, summary, write_neighbours
from vdq.reports.uncertainty import Noise, mean_interval, share_interval

CONF = Path(__file__).parents[2] / "conf"
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
        row |= {
            "size_mb_fp16": 4.5,
            "bits_per_weight": 9.5,
            "integer_gmacs": 0.5,
            "float_gmacs": 0.05,
            "bit_tops": 0.02,
        }
        if quant == "fp16":
            row |= {"kind": "full precision", "bits_per_weight": None, "integer_gmacs": 0.0}
        row |= {"stats": "s" if row["kind"] == "static" and quant != "fp16" else None, "signature": signature}
        return row | {"reference": f"fp16_full_{seed}_"} | fields

    return make


@pytest.fixture
def seeds(make):
    """Rows of all methods; quality falls with the bits, and seeds differ by tenths."""
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
    assert [row["psnr_low"], row["psnr_high"]] == pytest.approx(mean_interval(prompts))
    full = [f"{folder}/per_video.csv" for folder in seeds[seeds["method"] == "fp16"].sort_values("seed")["folder"]]
    base = [pd.read_csv(path).set_index("index").sort_index()["clipsim"] for path in full]
    paired = np.mean([table["clipsim"] - each for table, each in zip(videos, base, strict=True)], axis=0)
    assert row["clipsim_low"] <= paired.mean() <= row["clipsim_high"]
    assert [row["clipsim_low"], row["clipsim_high"]] == pytest.approx(mean_interval(paired))
    shares = np.mean([table["top1"] for table in videos], axis=0)  # of top-1 the share itself, not its difference
    assert [row["top1_low"], row["top1_high"]] == pytest.approx(share_interval(shares))
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
        psnr = {method: rows[method, bits].split("|")[6] for method in PSNR}
        assert [method for method, cell in psnr.items() if "**" in cell] == ["static_plus"] and "=" not in psnr["asq"]
        assert all("=" in rows[method, bits].split("|")[5] for method in PSNR)  # top-1, which is the same for all
    assert "| none" in rows["dynamic", "w4a4"] and "10 prompts, 63.0 s" in rows["asq", "w4a4"]
    assert (
        "6.25" in rows["dvd_quant", "w4a4"]
        and "4.00" in rows["asq", "w4a4"]
        and "| dynamic  " in rows["dynamic", "w4a4"][5:]
    )
    assert "`asq_w4a4_42_` `asq_w4a4_43_` `asq_w4a4_44_`" in rows["asq", "w4a4"]
    table = pd.read_csv(tmp_path / "out" / "neighbours.csv")
    assert len(table) == 1 + 5 * 3 and table["runs"].str.split().map(len).eq(3).all()
    assert all(text in rows["asq", "w4a4"] for text in ("| 9.50 ", "| 10.0% ", "| 20.0 ", "| 2.50 "))
    legend = " ".join((tmp_path / "out" / "neighbours.md").read_text().split())
    assert "**static_plus is not W4 on a model this small.**" in legend and "4.50 MB in fp16" in legend
    assert r"\textbf{" in (latex := (tmp_path / "out" / "neighbours.tex").read_text()) and r" 10.0\% " in latex
    for name in ("neighbours.png", "neighbours_costs.png"):
        with Image.open(tmp_path / "out" / name) as figure:
            assert figure.convert("L").getextrema()[0] < 200


def change(run: str, tmp_path, column: str, values) -> None:
    """Adds these values to a run's scores."""
    path = tmp_path / run / "per_video.csv"
    scores = pd.read_csv(path).sort_values("index")
    scores[column] += values
    scores.to_csv(path, index=False)


def test_goals_tell_every_seed(seeds, tmp_path):
    rows = goals(seeds)
    assert rows["here"].tolist() == ["holds"] * 3
    assert rows["of each seed"][0].count("seed") == 3 and "tsq_tsw" in rows["of each seed"][0]
    change("static_plus_w4a8_43_", tmp_path, "psnr", -1.1)  # from 4 dB above tsq_tsw to 2.9 with every prompt
    assert goals(seeds)["here"].tolist() == ["does not hold", "holds", "holds"]  # one seed is enough
    assert "(+2.90)" in goals(seeds)["of each seed"][0]
    alternating = np.where(np.arange(PROMPTS) % 2, 1.0, -1.0)
    change("static_plus_w4a8_43_", tmp_path, "psnr", alternating)
    assert goals(seeds)["here"][0] == "within noise"
    noise = Noise(pd.DataFrame({"metric": ["clipsim"], "bits": "w4a4", "per_video": 1.0}))
    assert goals(seeds, noise)["here"].tolist() == ["within noise", "holds", "within noise"]


@pytest.mark.parametrize("missing", ["static_plus", "tsq_tsw", "dvd_quant"])
def test_goals_without_a_run_are_not_testable(seeds, missing):
    left = seeds[(seeds["method"] != missing) | (seeds["seed"] != 44) & (missing != "static_plus")]
    verdicts = [verdict(goal, seed_scores_of(left))[0] for goal in GOALS]
    assert "not testable" in verdicts


def test_changed_methods_reach_no_goal(seeds):
    changed = seeds.assign(changed=seeds["changed"].where(seeds["method"] != "static_plus", "shift=null"))
    assert set(goals(changed)["here"]) == {"not testable"}


WHOLE = ablation.OFF | {"alpha": 0.7, "step_bits": "spread", "rounding": "gptq", "damping": 0.01}
PLAIN = {"alpha": None, "step_bits": None, "rounding": "nearest"}


@pytest.fixture
def variant(make, tmp_path):
    """A finished run of static_plus with these fields changed."""

    def variant(bits, seed, psnr, **fields):
        changed = ", ".join(f"{name}={value}" for name, value in fields.items())
        run = make("static_plus", bits, seed, psnr, changed)
        config = {"quant": WHOLE | fields | {"weight_bits": int(bits[1]), "act_bits": int(bits[3])}}
        Path(run["folder"], "config.yaml").write_text(yaml.safe_dump(config))
        return run

    return variant


def test_ablation_compares_runs_of_the_same_noise(variant, tmp_path):
    parts = [({}, 36.0), ({"rounding": "nearest"}, 35.0), ({"shift": "mean"}, 36.5), (PLAIN, 32.0)]
    parts.append((PLAIN | {"shift": "mean"}, 33.0))
    rows = [
        variant(bits, seed, psnr + seed - 42, **fields)
        for (fields, psnr), bits in product(parts, BITS)
        for seed in (SEEDS if not fields else SEEDS[:1])  # the others are run with fewer seeds
    ]
    table = ablation.variants(by_seed(pd.DataFrame(rows)))
    words = ["static_plus", "without rounding", "shift mean", "plain", "plain, shift mean"]
    assert table["variant"].unique().tolist() == words
    assert table["bits"].tolist() == list(BITS) * 5
    gains = table[table["bits"] == "w4a4"].set_index("variant")["psnr_gain"]
    assert gains.to_dict() == pytest.approx(dict(zip(words, [0, -1, 0.5, -4, -3], strict=True)))
    ablation.write_ablation(by_seed(pd.DataFrame(rows)), PROMPTS, tmp_path / "out")
    text = (tmp_path / "out" / "ablation.md").read_text()
    assert "(-1.00)" in text and "`static_plus_w4a4_42_shift-mean`" in text
    assert "alpha 0.7, step_bits spread, rounding gptq" in text
    values = table.set_index(["variant", "bits"])
    for (
        bits
    ) in BITS:  # the whole method stands there with the seed of its variants, so that differences can be read off
        whole = values.loc[("static_plus", bits)]
        assert whole["seeds"] == 1 and whole["runs"] == f"static_plus_{bits}_42_"
        for name in words:
            assert values.at[(name, bits), "psnr"] - whole["psnr"] == pytest.approx(
                values.at[(name, bits), "psnr_gain"]
            )
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert lines["shift mean"].count("** (+0.50)") == len(BITS)  # each the best of its column, with every prompt
    assert "Seeds: 42." in text
    assert len(pd.read_csv(tmp_path / "out" / "ablation.csv")) == 15


def test_effects_that_may_be_chance_are_marked(variant, tmp_path):
    """Of equal parts one has the same effect with every prompt, one an effect that half of the prompts contradict."""
    fields = [({}, 36.0), ({"rounding": "nearest"}, 35.0), ({"shift": "mean"}, 35.0)]
    rows = [variant("w4a4", 42, psnr, **changed) for changed, psnr in fields]
    change("static_plus_w4a4_42_shift-mean", tmp_path, "psnr", np.where(np.arange(PROMPTS) % 2, 2.0, -2.0))

    def psnr(noise=None):
        table = ablation.cells(ablation.variants(by_seed(pd.DataFrame(rows)), noise))
        return table.set_index("variant")["PSNR dB w4a4"].str.replace(r"^\**\d\d\.\d\d", "", regex=True).to_dict()

    assert psnr() == {"static_plus": "=", "without rounding": " (-1.00)", "shift mean": "= (~-1.00)"}
    noise = Noise(pd.DataFrame({"metric": ["psnr"], "bits": "w4a4", "per_video": 2.0}))  # 4 / sqrt(12) = 1.15
    assert psnr(noise) == {"static_plus": "=", "without rounding": "= (~-1.00)", "shift mean": "= (~-1.00)"}


def test_runs_of_an_earlier_version_of_the_method_are_left_out(variant):
    earlier = variant("w4a4", 42, 50.0, shift="median")
    path = Path(earlier["folder"], "config.yaml")
    config = yaml.safe_load(path.read_text())
    del config["quant"]["token_groups"]
    path.write_text(yaml.safe_dump(config))
    rows = [earlier, variant("w4a4", 42, 36.0), variant("w4a4", 42, 35.0, rounding="nearest")]
    assert ablation.variants(by_seed(pd.DataFrame(rows)))["variant"].tolist() == ["static_plus", "without rounding"]


def test_ablation_needs_the_whole_method(variant):
    with pytest.raises(ValueError, match="no run of static_plus as its file has it"):
        ablation.variants(by_seed(pd.DataFrame([variant("w4a4", 42, 30.0, shift="mean")])))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, (0, "static_plus")),
        ({"alpha": None}, (1, "without alpha")),
        ({"clamp_acts": True}, (2, "clamp_acts")),
        ({"step_bits": "switched"}, (2, "step_bits switched")),
        ({"damping": 0.1}, (2, "damping 0.1")),
        ({"alpha": None, "shift": "mid"}, (2, "without alpha, shift mid")),
        (PLAIN, (3, "plain")),
        (PLAIN | {"rotation_block": 128}, (4, "plain, rotation_block 128")),
        (PLAIN | {"alpha": 0.7}, (4, "plain, alpha 0.7")),
        (PLAIN | {"damping": 0.1}, (2, "without alpha, without step_bits, without rounding, damping 0.1")),
    ],
)
def test_variants_in_words(fields, words):
    place, text = ablation.described(WHOLE | fields, WHOLE)
    assert (place, sorted(text.split(", "))) == (words[0], sorted(words[1].split(", ")))


def test_experiment_starts_from_the_methods_file():
    method = yaml.safe_load((CONF / "quant" / f"{ablation.METHOD}.yaml").read_text())
    swept = yaml.safe_load((CONF / "experiment" / "ablation.yaml").read_text())
    assert swept["parts"] == {name: method[name] for name in ablation.OFF}
    assert swept["quant"] == {name: f"${{parts.{name}}}" for name in ablation.OFF}
    neighbours = yaml.safe_load((CONF / "experiment" / "neighbours.yaml").read_text())
    assert swept["dataset"] == neighbours["dataset"]  # one table is made of both


def test_experiment_leaves_out_and_adds_every_part():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["experiment=ablation"], return_hydra_config=True)
    (sweep,) = OverridesParser.create().parse_overrides([f"parts={cfg.hydra.sweeper.params.parts}"])
    whole = OmegaConf.to_container(cfg.parts)
    variants = [ablation.described(whole | part, whole)[1] for part in sweep.sweep_iterator(lambda x: x)]
    assert len(set(variants)) == len(variants) and {ablation.METHOD, "plain"} < set(variants)
    for part, off in ablation.OFF.items():
        assert whole[part] == off or f"without {part}" in variants
        assert any(name.startswith(f"plain, {part}") for name in variants)
