"""Time per video of every metric: ``python -m vdq.commands.metric_times FILE.md``.

Networks get random weights, which take as long as trained ones. FVD is left out: its network is published as a file
only.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torchvision.models import alexnet

from vdq.cli import file_to_write
from vdq.clip_library import open_clip
from vdq.files import write_text
from vdq.metrics.base import VideoMetric
from vdq.metrics.clip import ClipMetric
from vdq.metrics.dover.metric import DoverMetric
from vdq.metrics.dover.model import build_dover, build_dover_mobile
from vdq.metrics.fidelity import FidelityMetric
from vdq.metrics.lpips import LpipsMetric
from vdq.metrics.open_clip import ARCHITECTURE, OpenClip
from vdq.reports.text import markdown

SHAPE = (1, 16, 512, 512, 3)  # a video of Open-Sora 1.0
ROUNDS = 3
TEXT = """# Time per video of every metric

Seconds for one video of {frames} frames of {height} x {width} pixels on {threads} CPU threads, median of {rounds}
rounds after one to warm up; decoding not included. Written by `python -m vdq.commands.metric_times`.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=file_to_write, help="Markdown file to write")
    path = parser.parse_args().file
    videos, reference = (torch.randint(0, 256, SHAPE, dtype=torch.uint8) for _ in range(2))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make, inputs in metrics(Path(folder), videos, reference):
            rows.append({"metric": name, "seconds": f"{seconds(make(), inputs):.2f}"})
            print(rows[-1])
    table = markdown(pd.DataFrame(rows))
    frames, height, width = SHAPE[1:4]
    write_text(
        path,
        TEXT.format(
            frames=frames, height=height, width=width, threads=torch.get_num_threads(), rounds=ROUNDS, table=table
        ),
    )


def metrics(folder: Path, videos: Tensor, reference: Tensor) -> list[tuple[str, Callable[[], VideoMetric], tuple]]:
    """Name, constructor and inputs of each; one is made at a time."""

    def clip(preprocessing: str) -> ClipMetric:
        return ClipMetric(
            encoder=OpenClip(
                str(_saved(folder, open_clip.create_model(ARCHITECTURE))), None, str(folder), preprocessing
            )
        )

    def lpips() -> LpipsMetric:
        return LpipsMetric(cache=str(folder), weights=str(_saved(folder, alexnet())))

    prompts = ["two turtles swim past a reef"]
    return [
        ("CLIPSIM and CLIP-temp, EvalCrafter's preprocessing", lambda: clip("evalcrafter"), (videos, prompts)),
        ("CLIPSIM and CLIP-temp, CLIP's preprocessing", lambda: clip("standard"), (videos, prompts)),
        ("VQA-a and VQA-t, DOVER", lambda: DoverMetric(model=build_dover()), (videos,)),
        ("VQA-a and VQA-t, DOVER-Mobile", lambda: DoverMetric(model=build_dover_mobile()), (videos,)),
        ("PSNR and SSIM", FidelityMetric, (videos, reference)),
        ("LPIPS", lpips, (videos, reference)),
    ]


def seconds(metric: VideoMetric, inputs: tuple) -> float:
    """Median time of an update."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        metric.update(*inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _saved(folder: Path, net: torch.nn.Module) -> Path:
    path = folder / "weights.pth"
    torch.save(net.state_dict(), path)
    return path


if __name__ == "__main__":
    main()
