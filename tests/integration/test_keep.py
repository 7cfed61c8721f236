"""quant.keep and quant.keep_steps from the command line to the result; what cannot be kept is refused beforehand."""

import json
import re

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from vdq.commands import without_effect
from vdq.errors import UserError
from vdq.quant import QuantState
from vdq.stages.checks import check

KEPT = ("quant.keep=['*.mlp.fc2','blocks.0.attn.*']", "quant.keep_steps=[-1]")


def test_a_run_with_kept_layers_and_steps_says_so(finished, work):
    folder = finished.run("quant=tsq_tsw", *KEPT)
    assert not any("calibrat" in title for title in work)  # the statistics are those of the run without
    result, plain = (json.loads((path / "result.json").read_text()) for path in (folder, finished.run("quant=tsq_tsw")))
    assert result["changed"] == "keep=['*.mlp.fc2', 'blocks.0.attn.*'], keep_steps=[-1]" and plain["changed"] == ""
    assert result["signature"] != plain["signature"] and result["reference"] == plain["reference"]
    report = pd.read_csv(folder / "report.csv").set_index("fqn")
    kept = report[report["reason"].fillna("").str.startswith("quant.keep")]
    assert all(re.fullmatch(r".*\.mlp\.fc2|blocks\.0\.attn\..*", fqn) for fqn in kept.index) and len(kept) > 4
    assert plain["quantized_layers"] - result["quantized_layers"] == len(kept)
    assert set(report["kept_steps"].dropna()) == {1} and (report.loc[kept.index, "kind"] == "full_precision").all()
    assert QuantState.load(folder / "quant_state.safetensors").kept_steps == (1,)
    assert result["float_gmacs"] > plain["float_gmacs"] and result["integer_gmacs"] < plain["integer_gmacs"] / 2


def test_with_every_step_but_one_kept_the_latents_come_close_to_full_precision(finished):
    reference = finished.run("quant=fp16")

    def distance(*fields: str) -> float:
        folder = finished.run("quant=cw_tw", "bits=w4a4", *fields)
        own, exact = (load_file(path / "samples" / "0000.safetensors")["latents"] for path in (folder, reference))
        return float(torch.linalg.vector_norm(own - exact))

    assert 0 < distance("quant.keep_steps=[0]") < distance()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["quant.keep=['*.ffn.net.2']"], "quant.keep: *.ffn.net.2 matches none of the"),
        (["quant.keep=['*']"], "quant.keep=['*'] keeps all"),
        (["quant.keep=blocks"], "quant.keep=blocks must be a list such as [1,2]"),
        (["quant.keep=[1]"], "quant.keep.0=1 must be text"),
        (["quant.keep_steps=[2]"], "quant.keep_steps has 2, must be in 0..1"),
        (["quant.keep_steps=[0,1]"], "quant.keep_steps keeps all 2 steps"),
        (["quant.keep_steps=[true]"], "quant.keep_steps.0=True must be an integer"),
        (
            ["quant.keep_steps=[0]", "export=onnx_qdq", "stages=[export]"],
            "export=onnx_qdq cannot run steps in full precision, quant.keep_steps=[0] must be []",
        ),
        (["quant.keep_steps=[0]", "stages=[benchmark]"], "measures whole methods"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_calibration(testbed, fields, words):
    with pytest.raises(UserError, match=re.escape(words)):
        experiment = testbed.experiment("quant=asq", *fields)
        check(experiment, list(experiment.cfg.stages))
    assert not testbed.runs.exists()


@pytest.mark.parametrize("field", ["quant.keep=['blocks.0.*']", "quant.keep_steps=[0]"])
def test_full_precision_has_nothing_to_keep(testbed, field):
    experiment = testbed.experiment("quant=fp16", field)
    with pytest.raises(UserError, match=re.escape(f"{field} has no effect: quant=fp16 is not quantized")):
        without_effect.check(experiment, {field.partition("=")[0]: field})
