"""A new activation quantizer is this one file: symmetric, with scales that are powers of two."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from vdq.errors import UserError
from vdq.methods import StaticMethod
from vdq.quant.parts import ActQuantizer


@dataclass(frozen=True, eq=False, kw_only=True)
class PowerOfTwoActs(ActQuantizer):
    kind, tables = "power_of_two", ("exponent",)
    exponent: torch.Tensor  # [K]

    def __call__(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        scale, last = torch.exp2(self.at("exponent", step)), 2 ** (self.bits - 1) - 1
        return (x / scale).round().clamp(-last - 1, last) * scale


class PowerOfTwoMethod(StaticMethod):
    def act(self, lo: torch.Tensor, hi: torch.Tensor, *, steps: torch.Tensor) -> ActQuantizer:
        widest = torch.maximum(hi, -lo).clamp(min=1e-6) / (2 ** (self.act_bits - 1) - 1)
        return PowerOfTwoActs(bits=self.act_bits, exponent=widest.log2().ceil(), steps=steps)


def test_it_runs_is_packed_and_loaded_and_refused_by_name(testbed, tmp_path):
    overrides = ("quant=tsq_tsw", f"quant._target_={__name__}.PowerOfTwoMethod", "quant.name=new", "bits=w6a8")
    with pytest.raises(UserError, match="^backend=int8_cpu does not run the part power_of_two; it runs affine, "):
        testbed.run(*overrides, "backend=int8_cpu", "stages=[sample]")
    folder = testbed.run(*overrides, "stages=[sample,export]", "export=packed", f"export.path={tmp_path}/new")
    again = testbed.run(*overrides, "stages=[sample]", f"artefact={tmp_path}/new")
    paths = [run / "samples" / "0000.safetensors" for run in (folder, again, *testbed.runs.glob("fp16*"))]
    ours, loaded, full = (load_file(path)["latents"] for path in paths)
    assert torch.equal(ours, loaded) and 0 < (ours - full).norm() < 0.5 * full.norm()
