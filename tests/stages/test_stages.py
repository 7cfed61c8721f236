"""Stages and what they are asked for, without any model."""

import logging
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vdq.commands import tabulate
from vdq.commands.run import run
from vdq.errors import UserError
from vdq.quant.operations import Operations
from vdq.quant.state import LayerReport, QuantState
from vdq.stages.configuration import made, option, options
from vdq.stages.experiment import Experiment
from vdq.stages.identity import changed_fields
from vdq.stages.pipeline import STAGES
from vdq.stages.quantize import report_table
from vdq.stages.run_folder import intact

CONF = Path(__file__).parents[2] / "conf"


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["logger=csv", *overrides])


@pytest.mark.parametrize("asked", ["[quantize,sample]", "[sample,quantize]"])
def test_stages_follow_each_other_and_commands_follow_them(monkeypatch, asked):
    done = []
    for name in ("stages.sample", "stages.quantize", "commands.tabulate", "commands.benchmark"):
        module = __import__(f"vdq.{name}", fromlist=["run"])
        monkeypatch.setattr(module, "run", lambda experiment, name=name: done.append(name))
    monkeypatch.setattr(Experiment, "folder", Path("runs/name"))
    assert run(config(f"stages=[tabulate,{asked[1:-1]},benchmark]")) == "name"
    assert done == ["stages.quantize", "stages.sample", "commands.tabulate", "commands.benchmark"]


def test_a_run_is_finished_by_default():
    assert set(config().stages) <= set(STAGES) and "evaluate" in config().stages  # which pulls the others


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ((), ""),
        (("bits=w4a4",), ""),
        (("quant.alpha=0.3",), "alpha=0.3"),
        (("quant=cw_tw", "quant.num_time_ranges=4", "seed=1"), "num_time_ranges=4"),
        (("quant=asq", "quant.alpha=1", "quant.symmetric_acts=true"), "alpha=1, symmetric_acts=True"),
        (("quant=fp16",), ""),
    ],
)
def test_difference_from_the_method_is_named(overrides, changed):
    assert Experiment(config(*overrides)).identity.changed == changed


def test_a_method_of_the_users_own_folder_is_compared_with_its_file(tmp_path, monkeypatch):
    (tmp_path / "quant").mkdir()
    text = (CONF / "quant" / "asq.yaml").read_text().replace("name: asq", "name: own")
    (tmp_path / "quant" / "own.yaml").write_text(text)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [f"hydra.searchpath=[file://{tmp_path}]", "quant=own", "quant.symmetric_acts=true"]
        cfg = compose("config", given, return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)  # as in a run with --config-dir
    assert changed_fields(cfg) == "symmetric_acts=True"
    assert {"own", "asq"} <= set(options("quant")) and option("quant", "own").name == "own"


@pytest.mark.parametrize("path", ["nowhere.Method", "vdq.nowhere.Method", "vdq.methods.static.Nothing"])
def test_a_class_that_is_not_found_is_named(path):
    with pytest.raises(UserError, match=f"^quant._target_={path} is not found"):
        made("quant", OmegaConf.create({"_target_": path, "name": "own"}))


def test_an_error_inside_the_module_of_a_class_is_not_the_users(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="not_installed_anywhere"):
        made("quant", OmegaConf.create({"_target_": "broken_module.Method", "name": "own"}))


def test_runs_made_before_a_methods_file_changed_are_told_apart(tmp_path):
    made = OmegaConf.to_container(config("quant=static_plus", "bits=w4a4"), resolve=True)
    rows, whole = [], made["quant"]

    def without(*names: str) -> dict:
        return {name: value for name, value in whole.items() if name not in names}

    quants = {"same": whole, "other": whole | {"low_rank": 4}, "earlier": without("token_groups")}
    quants["before"] = without("keep", "keep_steps", "match")  # fields that came later and change nothing as they are
    for name, quant in quants.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(made | {"quant": quant}))
        rows.append({"folder": str(tmp_path / name), "changed": "as recorded"})
    rows.append({"folder": str(tmp_path / "none"), "changed": "as recorded"})
    found = tabulate._compared(pd.DataFrame(rows))["changed"]
    assert found.tolist() == ["", "low_rank=4", "no token_groups", "", "as recorded"]


def test_results_of_models_and_of_trials_do_not_meet():
    paths, others = config().paths, config("model=opensora_v1_256").paths
    assert (paths.gallery, paths.excerpt) == ("runs/gallery", "results/gallery")
    assert (others.gallery, others.excerpt) == ("runs/gallery_opensora_v1_256", "results/gallery_opensora_v1_256")
    assert config("debug=quick").paths.results == "runs/quick_results"


def test_reference_is_the_full_precision_method_with_all_else_equal():
    experiment = Experiment(config("quant=asq", "dataset.num_prompts=3", "seed=7", "sampler.steps=10"))
    experiment.__dict__["model"] = "shared"
    reference = experiment.reference
    assert reference.cfg.quant.name == "fp16" and not reference.method.quantizes and reference.reference is None
    assert reference.model == "shared"
    assert reference.cfg.seed == 7 and len(reference.prompts.evaluation) == 3
    assert reference.sampler.schedule.num_steps == 10
    assert experiment.cfg.quant.name == "asq"


def test_artefact_is_intact_damaged_or_missing(caplog):
    def load(path: str, error: Exception | None) -> None:
        if error is not None:
            raise error

    with caplog.at_level(logging.WARNING, logger="vdq"):
        assert intact(load, "stats", None)
        assert not intact(load, "stats", FileNotFoundError("stats"))
        assert caplog.text == ""
        assert not intact(load, "stats", ValueError("holds no vdq data"))
        assert "stats" in caplog.text and "holds no vdq data" in caplog.text and "made again" in caplog.text
        with pytest.raises(RuntimeError):  # a bug is no damage
            intact(load, "stats", RuntimeError())


def test_report_is_one_row_a_layer():
    quantized = LayerReport("a", (4, 2), "static", 8, 6, 2, 3, 0.5, 1.5)
    kept = LayerReport("b", (3,), "full_precision", reason="why")
    table = report_table(QuantState({}, 2, (quantized, kept)), {"a": Operations(8, 2, 1, 50)})
    assert table["fqn"].tolist() == ["a", "b"] and table["shape"].tolist() == ["4x2", "3"]
    assert table.loc[0, ["weight_bits", "act_bits", "weight_error"]].tolist() == [8, 6, 0.5]
    assert table.loc[1, "reason"] == "why" and pd.isna(table.loc[1, "weight_bits"])
    assert table.loc[0, ["integer_macs", "float_macs", "rotation_adds", "bit_operations"]].tolist() == [8, 2, 1, 50]


def test_tables_are_built_without_what_only_computing_needs():
    code = "import sys, vdq.commands.tabulate; sys.exit(bool({'pytorch_lightning', 'torchmetrics'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # they take seconds to import


def test_options_can_be_composed_while_hydra_runs_the_program():
    """As beside `python run.py`, where Hydra itself refuses a second composition."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        running = GlobalHydra.instance().hydra
        assert option("benchmark", "all").rounds > 1
        assert GlobalHydra.instance().hydra is running
