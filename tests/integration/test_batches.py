"""A video has the same bits whatever else is in its batch: on one machine, with one number of threads."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vdq.models.guidance import Conditions, Reusing, guided
from vdq.models.stdit import STDiT

EVERYONE = 8
COUNTS = (1, 2, 3, 5)
# 2, 8, 32 and 256 tokens a video: products of 4 rows (one prompt and its null caption) to 4096.
SIZES = {2: (2, 2, 2), 8: (2, 4, 4), 32: (8, 4, 4), 256: (16, 8, 8)}


def test_neither_batch_size_nor_remainder_changes_a_sample(testbed, tmp_path):
    """8-bit codes would show any difference of rounding: a value near an edge falls into the next code."""
    overrides = ("stages=[sample]", "quant=asq", "bits=w8a8", f"dataset.num_prompts={EVERYONE}")
    together = replace(testbed, runs=tmp_path / "together")
    together.run(*overrides, f"batch_size={EVERYONE}")
    expected = files(together.runs)
    assert len(expected) == 2 * EVERYONE  # of the reference, too
    for count in COUNTS:
        bed = replace(testbed, runs=tmp_path / str(count))
        bed.run(*overrides, f"batch_size={count}")
        assert [name for name, content in files(bed.runs).items() if content != expected[name]] == [], count


def files(runs):
    return {
        str(path.relative_to(runs)): path.read_bytes() for path in sorted(runs.glob("*/samples/[0-9]*.safetensors"))
    }


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("reusing", [False, True])
def test_a_step_is_the_same_in_every_batch(tokens, reusing):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = SIZES[tokens]
        net = STDiT(input_size=size, hidden_size=128, depth=2, num_heads=4, caption_channels=128, model_max_length=24)
        for parameter in net.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.1)
        x = torch.randn(EVERYONE, 4, *size)
        y, lengths = torch.randn(EVERYONE, 1, 24, 128), torch.tensor([3, 24, 11, 9, 17, 1, 12, 20])
    conditions = Conditions(y, net.y_embedder.y_embedding, (torch.arange(24) < lengths[:, None]).long())

    def step(count: int):
        denoiser = Reusing(net.eval()) if reusing else net.eval()
        return torch.cat(guided(denoiser, x[:count], 500, conditions[:count]), 1)

    with torch.inference_mode():
        together = step(EVERYONE)
        assert [count for count in COUNTS if not torch.equal(step(count), together[:count])] == []
