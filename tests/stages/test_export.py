"""An artefact that is there is taken for the wanted one only if it was made with the wanted options."""

from types import SimpleNamespace

import pytest

from vdq.export import artefact
from vdq.export.onnx_qdq import OnnxQdqExporter
from vdq.stages.export import _check_same

RUN = SimpleNamespace(name="run", signature="0123456789")


class Written(OnnxQdqExporter):
    """Writes no graphs."""

    def check(self, method, sampler, backend):
        raise NotImplementedError

    def write(self, run, folder):
        return self.choices


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"weight_type": "int8"}, None),
        ({}, "export.weight_type=int8, not uint8"),
        ({"steps": "constant"}, "export.steps=gather, not constant"),
    ],
)
def test_another_option_is_another_artefact(options, refusal, tmp_path):
    path = tmp_path / "onnx_qdq"
    artefact.write(Written(weight_type="int8"), RUN, path)
    wanted = SimpleNamespace(exporter=OnnxQdqExporter(**options), identity=RUN)
    if refusal is None:
        _check_same(wanted, path)
        return
    with pytest.raises(ValueError, match=rf"{path} was made with {refusal}; force=true replaces an artefact"):
        _check_same(wanted, path)
