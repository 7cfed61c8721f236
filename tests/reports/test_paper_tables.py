"""The paper's tables with made-up runs in them; numpy and the paper's own CSV files are the oracles."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import ttest_1samp

from vdq.reports import paper_tables
from vdq.reports.claims import CLAIMS, paper_scores_of, scores_of, verdict
from vdq.reports.marks import MARKDOWN
from vdq.reports.paper_report import cells, claims_of, write_table
from vdq.reports.paper_tables import OTHER_NOISE, TITLES, fill, paper_rows, wanted
from vdq.reports.scores import key_of
from vdq.reports.uncertainty import Noise

PROMPTS = 24
VALUES = {"fp16": 0.5, OTHER_NOISE: 0.51, "dynamic": 0.49, "asq": 0.45, "tsq_tsw": 0.47}


@pytest.fixture
def find(tmp_path):
    """Runs of some methods at every bit-width, their per-video values spread around a mean."""

    def find(dataset, method, weight_bits, act_bits):
        if method not in VALUES:
            return None
        signature = f"{method}{weight_bits}{act_bits}".replace(" ", "").replace(",", "")
        rng = np.random.default_rng(7)
        clipsim = VALUES[method] + 0.01 * weight_bits / 16 + 0.1 * rng.standard_normal(PROMPTS)
        table = pd.DataFrame({"index": range(PROMPTS), "clipsim": clipsim, "vqa_a": 100 * clipsim})
        (tmp_path / signature).mkdir(exist_ok=True)
        table.sample(frac=1, random_state=0).to_csv(tmp_path / signature / "per_video.csv", index=False)
        assets = {"shapes-clip": "0"}
        return pd.Series(
            {
                "signature": signature,
                "folder": str(tmp_path / signature),
                "model": "shapes",
                "kind": "",
                "assets": assets,
            }
        )

    return find


def test_the_papers_own_numbers_fit_its_claims():
    for name in TITLES:
        table = fill(name, lambda *row: None)
        for claim in CLAIMS:
            if name in claim.tables:
                assert verdict(claim, paper_scores_of(table))[0] == "holds", (name, claim.name)
                assert verdict(claim, scores_of(table))[0] == "not testable"


def test_every_row_of_the_paper_is_wanted_after_full_precision_and_its_yardstick():
    for name in TITLES:
        rows = wanted(name)
        assert rows["method"].tolist()[:2] == ["fp16", OTHER_NOISE]
        paper = paper_rows(name)
        assert set(zip(paper["method"], paper["w_bits"])) <= set(zip(rows["method"], rows["w_bits"]))  # noqa: B905


def test_values_intervals_and_averages(find):
    table = fill("table3", find)
    asq = table[(table["method"] == "asq") & (table["w_bits"] == "4") & (table["a_bits"] == "8")].iloc[0]
    rng = np.random.default_rng(7)
    spread = 0.1 * rng.standard_normal(PROMPTS)
    assert asq["clipsim"] == pytest.approx(np.mean(0.4525 + spread))
    # The difference to full precision is the same for every prompt, so the paired interval is that one value.
    assert [asq["clipsim_low"], asq["clipsim_high"]] == pytest.approx([0.4525 - 0.51] * 2)
    average = table[(table["method"] == "asq") & (table["w_bits"] == "average")].iloc[0]
    parts = table[(table["method"] == "asq") & (table["w_bits"] != "average")]
    assert average["clipsim"] == pytest.approx(parts["clipsim"].mean()) and average["run"] == "9 runs above"
    assert asq["paper_vqa_a"] == 26.9354


def test_interval_is_that_of_the_differences_between_prompts(tmp_path, find):
    run = find("opensora", "asq", 8, 8)
    full = find("opensora", "fp16", 16, 16)
    path = tmp_path / run["signature"] / "per_video.csv"
    scores = pd.read_csv(path)
    scores["clipsim"] += 0.05 * np.random.default_rng(1).standard_normal(PROMPTS)
    scores.to_csv(path, index=False)
    rows = {"fp16": full, "asq": run}
    row = fill("table4", lambda d, method, w, a: rows.get(method)).query("method == 'asq'").iloc[0]
    base = pd.read_csv(tmp_path / full["signature"] / "per_video.csv").set_index("index")["clipsim"]
    difference = (scores.set_index("index")["clipsim"] - base).to_numpy()
    student = ttest_1samp(difference, 0).confidence_interval(0.95)  # a little too short for skewed differences
    width = student.high - student.low
    assert student.low - 0.1 * width < row["clipsim_low"] <= student.low
    assert student.high <= row["clipsim_high"] < student.high + 0.1 * width


def test_written_for_people_programs_and_papers(tmp_path, find):
    text = write_table("table1", fill("table1", find), tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("| dynamic")]
    assert "**0.4" in lines[0] and "`dynamic88`" in lines[0]  # the best quantized one
    assert "never with the paper" in text and "CLIPSIM paper" not in text
    assert not any(mark in next(line for line in text.splitlines() if line.startswith("| tsq_tsw")) for mark in "*=")
    assert "not testable" in text  # vqa_t is missing
    assert "Processor: not recorded." in text and "another processor changes was not measured" in text
    table = pd.read_csv(tmp_path / "table1.csv")
    assert table.loc[table["method"] == "asq", "run"].item() == "asq88"
    latex = (tmp_path / "table1.tex").read_text()
    assert r"\textbf{0.4" in latex and r"tsq\_tsw" in latex and r"\begin{tabular}" in latex


def shown(table: pd.DataFrame, metric: str = "CLIPSIM ↑") -> dict[str, set[str]]:
    """By mark the methods that have it at any bit-width."""
    text = cells(table, MARKDOWN)
    text = text[~text["bits"].isin(["full", "average"])]
    marks = {"bold": text[metric].str.startswith("**"), "tied": text[metric].str.contains("=")}
    return {name: set(text.loc[rows, "method"]) for name, rows in marks.items()}


def test_bold_is_what_leaves_the_noise_of_prompts_seeds_and_processors(find):
    assert shown(fill("table3", find)) == {"bold": {"dynamic"}, "tied": set()}  # by 0.02 with every prompt
    with_noise = Noise(pd.DataFrame({"metric": ["clipsim"], "bits": "w8a8", "per_video": 0.06}))
    tied = fill("table3", find, with_noise)  # 0.12 / sqrt(24) = 0.024
    assert shown(tied) == {"bold": set(), "tied": {"dynamic", "tsq_tsw"}}
    assert shown(tied, "VQA-a ↑") == {"bold": {"dynamic"}, "tied": set()}
    assert set(tied["clipsim_mark"]) == {"", "tied"} and set(tied["vqa_a_mark"]) == {"", "best"}


def test_a_difference_smaller_than_that_of_another_seed_is_a_tie(find, monkeypatch):
    monkeypatch.setitem(VALUES, OTHER_NOISE, 0.475)
    assert shown(fill("table3", find)) == {"bold": set(), "tied": {"dynamic", "tsq_tsw"}}


def test_what_prompts_disagree_about_is_a_tie(tmp_path, find):
    def spread(*row):
        run = find(*row)
        if run is not None and row[1] == "tsq_tsw":
            path = Path(run["folder"], "per_video.csv")
            scores = pd.read_csv(path).sort_values("index")
            scores["clipsim"] += np.where(np.arange(PROMPTS) % 2, 0.1, -0.1)
            scores.to_csv(path, index=False)
        return run

    assert shown(fill("table3", spread)) == {"bold": set(), "tied": {"dynamic", "tsq_tsw"}}


def test_processors_stand_below_the_table(tmp_path, find):
    names = {"asq": "A, AVX2", "fp16": "A, AVX2"}

    def found(*row):
        run = find(*row)
        return run if run is None else pd.concat([run, pd.Series({"processor": names.get(row[1], "B, AVX512")})])

    write_table("table1", fill("table1", found), tmp_path)
    told = "Processors differ, and last digits with them: A, AVX2 (2 of 5 runs); B, AVX512 (3 of 5 runs)."
    assert told in (tmp_path / "table1.tex").read_text() and "scores" not in pd.read_csv(tmp_path / "table1.csv")


def test_the_papers_numbers_stand_beside_runs_of_its_setting_only(tmp_path, find, monkeypatch):
    monkeypatch.setitem(paper_tables.PROMPTS, "table3", PROMPTS)

    def published(steps=20, model="opensora_v1_512"):
        def found(*row):
            run = find(*row)
            if run is not None:
                run["model"], run["assets"] = model, {"ViT-B-32-quickgelu openai": "1", "DOVER": "2"}
                sampler = {"sampler": {"steps": steps, "guidance_scale": 7.0}}
                Path(run["folder"], "config.yaml").write_text(yaml.safe_dump(sampler))
            return run

        return write_table("table3", fill("table3", found), tmp_path)

    text = published()
    assert "CLIPSIM paper" in text and "CLIPSIM Δ" in text and "0.1849" in text and "53.9969" in text
    assert f"model opensora_v1_512, prompts {PROMPTS}, steps 20, guidance 7" in text
    for other in (published(steps=100), published(model="opensora_v1_256")):
        assert "CLIPSIM Δ" not in other and "Not the paper's setting" in other and "testbed" not in other
    monkeypatch.setitem(paper_tables.PROMPTS, "table3", PROMPTS + 1)
    assert "CLIPSIM Δ" not in published()


def test_claims_tell_their_numbers(find):
    rows = claims_of("table4", fill("table4", find)).set_index("claim")
    ranges = rows.loc["A range for each step has the highest CLIPSIM of all numbers of time ranges."]
    assert ranges["here"] == "not testable" and "0.1967" in ranges["paper's numbers"]


NEAR = next(claim for claim in CLAIMS if claim.name == "dynamic_w8a8")  # loses at most 2 points of VQA-a and VQA-t


@pytest.mark.parametrize(
    ("lost", "spread", "noise", "answer"),
    [
        ((0.0, 1.0), 1.0, 0.0, "holds"),
        ((0.0, 1.9), 1.0, 0.0, "within noise"),  # 24 prompts tell a mean within 0.4
        ((0.0, 2.1), 1.0, 0.0, "within noise"),
        ((1.9, 3.0), 1.0, 0.0, "does not hold"),  # one that says the opposite is enough
        ((0.0, 1.9), 0.1, 0.0, "holds"),
        ((0.0, 1.9), 0.1, 0.2, "within noise"),  # which another processor changes
        ((0.0, 2.1), 0.1, 0.2, "within noise"),
    ],
)
def test_a_claim_holds_does_not_or_is_within_noise(lost, spread, noise, answer):
    changes = np.random.default_rng(0).standard_normal(PROMPTS)
    changes = spread * (changes - changes.mean()) / changes.std()
    scores = {"fp16": {"vqa_a": np.full(PROMPTS, 90.0), "vqa_t": np.full(PROMPTS, 80.0)}}
    scores["dynamic"] = {
        metric: scores["fp16"][metric] - mean + changes for metric, mean in zip(scores["fp16"], lost, strict=True)
    }
    found = verdict(NEAR, lambda method, bits, metric: scores[method][metric], lambda metric, bits: noise)
    assert found == (answer, f"loses {lost[0]:.1f}, {lost[1]:.1f}")


def test_evalcrafters_variant_is_the_papers_metric():
    assert key_of("clipsim", ["clipsim_evalcrafter", "clipsim_standard"]) == "clipsim_evalcrafter"
    assert key_of("vqa_a", ["vqa_a"]) == "vqa_a"
