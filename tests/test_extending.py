"""The worked examples of docs/extending run as they stand there: their files in an empty folder, their command."""

import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vdq.commands.run import run
from vdq.errors import UserError
from vdq.export.base import Exporter
from vdq.installation import CONF
from vdq.methods.base import Method
from vdq.models.base import VideoModel
from vdq.tracking.registry import read_result

EXAMPLES = {page.stem: page for page in (Path(__file__).parents[1] / "docs" / "extending").glob("*.md")}
EXAMPLES.pop("index")
SMALL = ["debug=quick", "sampler.steps=2", "logger=csv"]


def config(page: str, root: Path, *more: str) -> DictConfig:
    """What the page's command composes, with its files below `root`."""
    [command] = re.findall(r"^```\n(vdq .*)\n```", EXAMPLES[page].read_text(encoding="utf-8"), re.MULTILINE)
    program, flag, conf, *overrides = shlex.split(command)
    assert (program, flag) == ("vdq", "--config-dir")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"hydra.searchpath=[file://{root / conf}]", *overrides, *SMALL, *more])


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder that the command of the page `request.param` makes, on two prompts and steps."""
    text = EXAMPLES[request.param].read_text(encoding="utf-8")
    for name, content in re.findall(r'^```\w+ title="(.*?)"\n(.*?)^```', text, re.DOTALL | re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    for path in (tmp_path / "mine").glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return tmp_path / "runs" / run(config(request.param, tmp_path))


def example(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("folder", [name], indirect=True)


@example("method")
def test_method_gives_layers_of_these_names_more_bits(folder):
    report = pd.read_csv(folder / "report.csv").set_index("fqn")
    bits = report.loc[report["weight_bits"].notna(), "weight_bits"]
    wide = bits.index.str.endswith("mlp.fc2")
    assert set(bits[wide]) == {8} and set(bits[~wide]) == {4}


@example("part")
def test_part_runs_and_is_refused_by_name_where_nobody_speeds_it_up(folder):
    assert 5 < read_result(folder)["psnr"] < 60
    with pytest.raises(UserError, match="^backend=int8_cpu does not run the part log2; "):
        run(config("part", folder.parents[1], "backend=int8_cpu"))


@example("metric")
def test_metric_scores_every_video(folder):
    scores = pd.read_csv(folder / "per_video.csv")["flicker"]
    assert len(scores) == 2 and (scores > 0).all()
    assert read_result(folder)["flicker"] == pytest.approx(scores.mean())


@example("backend")
def test_backend_executes_every_layer(folder):
    result = read_result(folder)
    assert result["arithmetic"] == "bf16_output (simulated)" and 20 < result["psnr"] < 100


@example("exporter")
def test_exporter_writes_its_table_and_a_manifest(folder):
    written = folder / "export" / "layer_table"
    assert (written / "manifest.json").is_file()
    assert set(pd.read_csv(written / "layers.csv")["weight_bits"].dropna()) == {4}


@example("model")
def test_model_is_calibrated_quantized_sampled_and_scored(folder):
    report = pd.read_csv(folder / "report.csv").set_index("fqn")
    assert set(report.index[report["weight_bits"].notna()]) == {"blocks.0", "blocks.2"}
    assert read_result(folder)["psnr"] > 20


@pytest.mark.parametrize(("page", "contract"), [("method", Method), ("model", VideoModel), ("exporter", Exporter)])
def test_a_page_names_every_member_of_its_contract(page, contract):
    text = EXAMPLES[page].read_text(encoding="utf-8")
    told = re.findall(r"`([^`\n]+)`", text[text.rindex("\n```\n") :])
    members = {name for name in {**vars(contract), **contract.__annotations__} if not name.startswith("_")}
    missing = members - set(re.findall(r"\w+", " ".join(told)))
    assert not missing, f"docs/extending/{page}.md does not say what {', '.join(sorted(missing))} of a {page} is"


def test_every_page_has_its_test():
    tests = [mark for test in globals().values() for mark in getattr(test, "pytestmark", [])]
    marks = {mark.args[1][0] for mark in tests if mark.args[0] == "folder"}
    assert marks == set(EXAMPLES)
