"""Frames of bytes against those that Open-Sora saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vdq.models.frames import to_uint8


@pytest.mark.parametrize(
    ("dtype", "key"), [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")], ids=str
)
def test_to_uint8_equals_opensora_in_every_dtype(fixtures: Path, dtype: torch.dtype, key: str) -> None:
    saved = load_file(fixtures / "opensora" / "save_sample.safetensors")
    video = saved["in.x"].to(dtype)
    before = video.clone()
    frames = to_uint8(video)
    assert frames.dtype == torch.uint8 and torch.equal(frames, saved[f"out.u8_{key}"])
    assert torch.equal(video, before), "the input was modified"
    assert torch.equal(to_uint8(torch.stack([video, -video]))[0], frames), "a leading batch axis changes nothing"


def test_to_uint8_clamps_infinities_and_refuses_nan() -> None:
    video = torch.full((3, 1, 2, 2), float("inf"))
    video[:, :, 0] = -float("inf")
    assert to_uint8(video)[0, :, 0].tolist() == [[0, 0, 0], [255, 255, 255]]
    video[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 NaN"):
        to_uint8(video)


@pytest.mark.parametrize(
    "video", [torch.zeros(3, 2, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4), torch.zeros(2, 4, 4, 3)]
)
def test_to_uint8_refuses_other_inputs(video: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\.,3,T,H,W\]"):
        to_uint8(video)
