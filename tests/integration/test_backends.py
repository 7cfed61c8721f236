"""The whole pipeline on integer backends."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def latents(folder: Path) -> torch.Tensor:
    return torch.stack([load_file(path)["latents"] for path in sorted((folder / "samples").glob("*.safetensors"))])


@pytest.mark.parametrize("backend", ["int8_cpu", pytest.param("reference", marks=pytest.mark.slow)])
def test_integers_make_the_videos_of_the_simulation(backend, finished, tmp_path):
    """Closer to the simulation than quantization is to full precision, and the run says what computed it. Not equal: a
    rounding of one layer's output moves codes of the next.
    """
    bed = replace(finished, runs=tmp_path / "runs")  # other tests look for the one tsq_tsw run of `finished`
    shutil.copytree(finished.runs, bed.runs, ignore=shutil.ignore_patterns("videos_*"))
    folder = bed.run("quant=tsq_tsw", f"backend={backend}")
    assert folder.name.startswith(f"tsq_tsw_w8a8_{backend}_shapes_")
    simulated = next(path for path in bed.runs.glob("tsq_tsw_w8a8_*") if path != folder)
    ours, theirs, exact = map(latents, (folder, simulated, next(bed.runs.glob("fp16_*"))))
    assert 0 < (ours - theirs).norm() < 0.6 * (theirs - exact).norm()
    ran = json.loads((folder / "sampling.json").read_text())
    assert ran["arithmetic"].startswith(f"{backend} (integer") and ran["quantized_calls"] == 72 * 2 + 6
    assert ran["integer_weights_mb"] > 0 == json.loads((simulated / "sampling.json").read_text())["integer_weights_mb"]


def test_bits_that_no_byte_holds_are_refused(testbed):
    with pytest.raises(ValueError, match="^bits=w8a16 has 16-bit codes, must have at most 8 for backend=int8_cpu"):
        testbed.run("quant=cw_tw", "bits=w8a16", "backend=int8_cpu", "stages=[sample]")
