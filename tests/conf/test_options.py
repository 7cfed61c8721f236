"""Every option of every config group composes and fits the code that it names; a new file is tested as it is."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from vdq.backends.cuda.backend import unavailable
from vdq.errors import UserError
from vdq.methods import Method
from vdq.metrics.catalogue import CATALOGUE
from vdq.stages.experiment import Experiment

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
PUBLISHED = ("opensora", "ucf101")
SWEEPS = sorted(ROOT.glob("sweeps/*.yaml"))


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["logger=csv", *overrides])


def names(group: str) -> list[str]:
    return [name for found, name in OPTIONS if found == group]


def targets(node: object) -> list[dict]:
    """Every mapping with a ``_target_`` below ``node``."""
    inside = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    itself = [node] if isinstance(node, dict) and "_target_" in node else []
    return [*itself, *(found for value in inside for found in targets(value))]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_composes_and_makes_its_cheap_objects(group, option):
    overrides = [f"{group}={option}", *(["logger.mode=offline"] if option == "wandb" else [])]
    if option in PUBLISHED:  # instead of a download
        overrides += [f"dataset.{field}={CONF / 'config.yaml'}" for field in ("prompts", "calibration_prompts")]
    overrides += (
        ["model.pretrained=owner/name"] if (group, option) == ("model", "diffusers") else []
    )  # which only the user knows
    cfg = config(*overrides)
    assert not OmegaConf.missing_keys(cfg)
    if option == "int8_cuda" and unavailable() is not None:
        with pytest.raises(UserError, match="backend int8_cuda cannot run here: "):
            Experiment(cfg)
    else:
        Experiment(cfg)  # sampler, method, backend, prompts, tracker
    for target in targets(OmegaConf.to_container(cfg, resolve=True)):
        arguments = target.keys() - {"_target_", "_partial_", "name", *Method.neutral}
        inspect.signature(get_method(target["_target_"])).bind_partial(**dict.fromkeys(arguments))


@pytest.mark.parametrize("option", names("bits"))
def test_bits_option_is_what_its_name_says(option):
    experiment = Experiment(config(f"bits={option}"))
    assert experiment.identity.bits == option
    assert experiment.identity.name == f"tsq_tsw_{option}_shapes"


@pytest.mark.parametrize("option", names("quant"))
def test_method_is_named_as_its_file(option):
    experiment = Experiment(config(f"quant={option}", "bits=w4a6"))
    assert experiment.cfg.quant.name == option
    assert experiment.identity.bits == ("w4a6" if experiment.method.quantizes else "")


@pytest.mark.parametrize("option", names("trainer"))
def test_trainer_can_be_made(option):
    if option == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    Experiment(config(f"trainer={option}")).trainer()


@pytest.mark.parametrize("option", names("sampler"))
def test_sampler_takes_the_steps_of_its_name(option):
    assert instantiate(config(f"sampler={option}").sampler).steps == int(option.rpartition("_")[2])


@pytest.mark.parametrize("option", names("experiment"))
def test_experiment_sweeps_over_options_that_exist(option):
    experiment = OmegaConf.load(CONF / "experiment" / f"{option}.yaml")
    params = OmegaConf.select(experiment, "hydra.sweeper.params") or {}  # table6 is one run
    for group, values in (OmegaConf.to_container(params) if params else {}).items():  # interpolations as they stand
        if group == "quant.alpha":
            assert all(0 <= float(value) <= 1 for value in values.split(","))
        elif (CONF / group).is_dir():
            assert values == "glob(*)" or set(values.split(",")) <= set(names(group))
        else:
            assert group in OmegaConf.load(CONF / "config.yaml") or group in experiment


def test_alphas_of_every_model_are_complete():
    texts = [(CONF / "quant" / f"{name}.yaml").read_text() for name in names("quant")]
    methods = {name for text in texts for name in re.findall(r"\${alpha\.(\w+)}", text)}
    for option in names("alpha"):
        alphas = OmegaConf.load(CONF / "alpha" / f"{option}.yaml")
        assert set(alphas) == methods and all(0 <= alpha <= 1 for alpha in alphas.values())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_file_asks_for_runs_that_exist(path):
    sweep = yaml.safe_load(path.read_text())
    assert (ROOT / sweep["program"]).is_file()
    direction = "maximize" if CATALOGUE[sweep["metric"]["name"]].higher_is_better else "minimize"
    assert sweep["metric"]["goal"] == direction
    grid = [[f"{name}={value}" for value in field["values"]] for name, field in sweep["parameters"].items()]
    for axis in grid:  # each value once, not all combinations
        for value in axis:
            Experiment(config(value, *(other[0] for other in grid if other is not axis)))
