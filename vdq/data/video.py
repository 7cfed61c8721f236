"""Videos that are written: frames to MP4.

Encoding is part of an evaluation's protocol (spec of the paper's metrics): the codec is H.264 4:2:0 at a fixed CRF with
one encoder thread, so that equal frames give equal files on any number of cores.
"""

from fractions import Fraction
from os import PathLike
from pathlib import Path

import av
import torch
from torch import Tensor

from vdq.errors import UserError
from vdq.files import complete_or_nothing


def write_mp4(path: str | PathLike[str], frames: Tensor, fps: float, *, crf: int = 18, comment: str = "") -> None:
    """Write uint8 frames [T,H,W,3] as H.264 yuv420p; the file appears complete or not at all.

    Args:
        path: file to write or replace; its folder is created.
        frames: RGB frames with even height and width, which 4:2:0 needs.
        fps: frames per second.
        crf: constant rate factor of x264, 0 (best) to 51.
        comment: text for the file's metadata.

    Raises:
        UserError: on another dtype or shape, an odd size, or fps or crf out of range.
    """
    check_frames("frames", frames)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(f"frames have size {height}x{width}; only even heights and widths are allowed by yuv420p")
    if not fps > 0:
        raise UserError(f"fps is {fps}; a number above 0 is allowed")
    if not 0 <= crf <= 51:
        raise UserError(f"crf is {crf}; 0 to 51 is allowed")
    with complete_or_nothing(Path(path)) as partial, av.open(str(partial), mode="w", format="mp4") as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames.cpu().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def check_frames(name: str, frames: Tensor) -> None:
    """Raises UserError, with ``name``, unless frames are uint8 [T,H,W,3] with at least one."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 1:
        raise UserError(f"{name} is {frames.dtype} {tuple(frames.shape)}; only uint8 [T,H,W,3] with T >= 1 is allowed")
