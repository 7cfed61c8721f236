"""Sizes on disk beside those that follow from the structure."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from vdq.commands.packed_sizes import measure, table
from vdq.stages.experiment import Experiment

CONF = Path(__file__).parents[2] / "conf"
METHODS = sorted(path.stem for path in (CONF / "quant").glob("*.yaml") if path.stem != "fp16")
BITS = sorted(path.stem for path in (CONF / "bits").glob("*.yaml"))
SMALL = ["model.denoiser.depth=2", "model.denoiser.hidden_size=48", "model.denoiser.num_heads=4", "logger=csv"]


def assert_measured_is_computed(row: dict, header: float) -> None:
    """MB, two digits; `header`: what safetensors, manifest and card may add."""
    computed, tensors, files = (float(row[name]) for name in ("computed", "tensors", "files"))
    assert abs(tensors - computed) < 0.011
    assert computed < files < computed + header


def test_small_model_is_written_measured_and_removed(tmp_path):
    rows = table(["asq_tsw", "dynamic"], ["w8a8", "w6a8"], [*SMALL, f"paths.runs={tmp_path}"]).to_dict("records")
    assert [(row["method"], row["bits"]) for row in rows] == [
        ("asq_tsw", "w8a8"),
        ("asq_tsw", "w6a8"),
        ("dynamic", "w8a8"),
        ("dynamic", "w6a8"),
    ]
    for row in rows:
        assert_measured_is_computed(row, 0.1)
    assert not list(tmp_path.iterdir())


def test_full_precision_and_a_full_disk_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="quant=fp16 has none"):
        table(["fp16"], ["w8a8"], [*SMALL, f"paths.runs={tmp_path}"])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"has 0 MB left, random_weights_asq_w8a8_shapes takes \d+ MB"):
        table(["asq"], ["w8a8"], [*SMALL, f"paths.runs={tmp_path}"])


@pytest.mark.slow
def test_testbed_in_every_method_and_width_has_the_computed_size(tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        base = Experiment(compose("config", overrides=["logger=csv", f"paths.runs={tmp_path}"]))
    for method in METHODS:
        for bits in BITS:
            assert_measured_is_computed(measure(base.variant(quant=method, bits=bits), tmp_path), 0.16)
