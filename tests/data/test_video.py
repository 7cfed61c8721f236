"""Oracles: scikit-image's PSNR, FFmpeg through PyAV, numpy."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from vdq.data.read_video import read_video
from vdq.data.video import write_mp4


def moving_ramp(frames: int = 6, height: int = 32, width: int = 48) -> torch.Tensor:
    """Smooth uint8 [T,H,W,3] with a different red, green, blue and time course."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    ramp = np.stack([4 * x + 3 * t, 200 - 4 * y, 60 + 2 * x + y - 5 * t], axis=-1)
    return torch.from_numpy(np.clip(ramp, 0, 255).astype(np.uint8))


def test_mp4_keeps_frames_size_rate_and_pixel_format(tmp_path: Path) -> None:
    frames = moving_ramp()
    path = tmp_path / "new" / "folder" / "a.mp4"
    write_mp4(path, frames, 8)
    back = read_video(path)
    assert back.dtype == torch.uint8 and back.shape == frames.shape
    for frame, original in zip(back.numpy(), frames.numpy(), strict=True):
        assert peak_signal_noise_ratio(original, frame, data_range=255) > 32
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"], "the temporary name is gone"


def test_mp4_is_reproducible_and_crf_trades_size_for_quality(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    for name, crf in {"a": 18, "b": 18, "c": 40}.items():
        write_mp4(tmp_path / name, frames, fps=8, crf=crf)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b and len(c) < len(a)


def test_mp4_of_one_frame(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving_ramp(frames=1), fps=8)
    assert read_video(tmp_path / "a.mp4").shape == (1, 32, 48, 3)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", fail, raising=True)
    with pytest.raises(RuntimeError, match="disk full"):
        write_mp4(path, moving_ramp(), fps=8)
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (moving_ramp(height=31), {}, "31x48"),
        (moving_ramp(width=47), {}, "32x47"),
        (moving_ramp().float(), {}, "float32"),
        (moving_ramp()[0], {}, "uint8"),
        (moving_ramp()[:0], {}, "T >= 1"),
        (moving_ramp(), {"fps": 0}, "fps is 0"),
        (moving_ramp(), {"crf": 60}, "crf is 60"),
    ],
)
def test_write_mp4_refuses_bad_input(tmp_path: Path, frames: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_mp4(tmp_path / "a.mp4", frames, **{"fps": 8, **options})
    assert not list(tmp_path.iterdir())
