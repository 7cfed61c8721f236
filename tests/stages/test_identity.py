"""What is in a signature and what is not: versions are, the module of a class and its `unsigned` arguments are not."""

import sys
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir

from vdq.backends.fake_quant import FakeQuantBackend
from vdq.data import samples
from vdq.installation import CONF
from vdq.methods.static import StaticMethod
from vdq.methods.static_plus.method import StaticPlusMethod
from vdq.metrics.clip import ClipMetric
from vdq.models.shapes import ShapesModel
from vdq.quant import recorded_inputs, state, stats
from vdq.stages.experiment import Experiment

NAMES = ("stats_signature", "recorded_signature", "signature", "metrics_signature")


@pytest.fixture(scope="module")
def model() -> ShapesModel:
    return ShapesModel()


@pytest.fixture
def signatures(model):
    def of(*overrides: str) -> dict[str, str]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", ["logger=csv", "~metrics.dover", *overrides])
        experiment = Experiment(cfg)
        experiment.__dict__["model"] = model
        own = {name: getattr(experiment.identity, name) for name in NAMES}
        return own | {"reference": (experiment.reference or experiment).identity.signature}

    return of


RAISED = {
    "statistics": (stats, "VERSION", {"stats_signature", "recorded_signature", "signature"}),
    "recorded inputs": (recorded_inputs, "VERSION", {"recorded_signature", "signature"}),
    "quantization": (state, "VERSION", {"signature"}),
    "method": (StaticPlusMethod, "version", {"signature"}),
    "another method": (StaticMethod, "version", set()),
    "backend": (FakeQuantBackend, "version", {"signature"}),
    "samples": (samples, "VERSION", {"stats_signature", "recorded_signature", "signature", "reference"}),
    "model": (ShapesModel, "version", {"stats_signature", "recorded_signature", "signature", "reference"}),
    "metric": (ClipMetric, "version", {"metrics_signature"}),
}


@pytest.mark.parametrize("what", RAISED)
def test_a_raised_version_changes_the_signatures_of_what_it_makes(signatures, monkeypatch, what):
    owner, name, changed = RAISED[what]
    before = signatures("quant=static_plus")
    monkeypatch.setattr(owner, name, 2)
    after = signatures("quant=static_plus")
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_class_may_move(signatures, monkeypatch):
    moved = ModuleType("moved")
    moved.StaticMethod, moved.Other = StaticMethod, type("Other", (StaticMethod,), {})
    monkeypatch.setitem(sys.modules, "moved", moved)
    before = signatures("quant=asq")
    assert signatures("quant=asq", "quant._target_=moved.StaticMethod") == before
    assert signatures("quant=asq", "quant._target_=moved.Other")["signature"] != before["signature"]


def test_a_class_says_which_of_its_arguments_are_in_no_signature(signatures, monkeypatch):
    assert signatures("backend.weight_sets=keep") == signatures("backend.weight_sets=packed")
    monkeypatch.setattr(FakeQuantBackend, "unsigned", ())
    assert signatures("backend.weight_sets=keep") != signatures("backend.weight_sets=packed")


def test_what_is_kept_is_signed_where_something_is(signatures):
    before = signatures("quant=asq")
    assert signatures("quant=asq", "quant.keep=[]", "quant.keep_steps=[]") == before
    for field in ("quant.keep=['blocks.0.*']", "quant.keep_steps=[-1]"):
        after = signatures("quant=asq", field)
        assert {name for name in before if before[name] != after[name]} == {"signature"}
