"""The table of exported weights: every form is there, and the exact ones are as near to fp32 as their bits allow."""

import pytest

for package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason="needs the packages of vdq[export]")

from vdq.commands import onnx_speed  # noqa: E402


def test_every_form_is_measured(monkeypatch):
    monkeypatch.setattr(onnx_speed, "SHAPES", ((64, 32), (32, 64)))
    rows = onnx_speed.table(tokens=16, rounds=1)
    assert list(rows) == ["runtime", "weights", "setting", "64 → 32", "32 → 64", "off by"]
    assert len(rows) == 10 and rows["64 → 32"][0].endswith("(1.00x)")
    exact = rows[~((rows.weights == "int8") & (rows.setting == "none"))]  # which saturates on some CPUs
    errors = exact["off by"].astype(float)
    assert ((errors == 0) == (exact.weights == "fp32")).all() and errors.max() < 0.04
