"""Contact sheets, read back as pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vdq.data.contact_sheet import FONT_SIZE, MARGIN, contact_sheet


def plain(red: int, frames: int = 5) -> torch.Tensor:
    """uint8 [T,20,30,3] of one colour, whose red rises by one a frame."""
    video = torch.tensor([red, 0, 200], dtype=torch.uint8).repeat(frames, 20, 30, 1)
    video[..., 0] += torch.arange(frames, dtype=torch.uint8)[:, None, None]
    return video


def test_contact_sheet_shows_first_to_last_frame_under_each_caption(tmp_path: Path) -> None:
    contact_sheet([plain(100), plain(50)], ["first", "second"], 3, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    first_frames = np.isin(sheet[..., 0], [100, 50]) & (sheet[..., 1] == 0)
    rows, columns = (np.flatnonzero(first_frames.any(axis)) for axis in (1, 0))
    assert len(columns) == 30 and len(rows) == 2 * 20, "frame 0 once in each row"
    for red, top in ((100, rows[0]), (50, rows[20])):
        blocks = [sheet[top + 10, columns[0] + 15 + step * (30 + MARGIN)] for step in range(3)]
        assert [block.tolist() for block in blocks] == [[red + step, 0, 200] for step in (0, 2, 4)]
    assert (sheet[: rows[0]] < 128).any() and (sheet[rows[19] + 1 : rows[20]] < 128).any(), "captions are drawn"


def test_contact_sheet_wraps_captions_and_shows_short_videos(tmp_path: Path) -> None:
    video = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    for name, caption in {"short": "one", "long": "many words " * 12}.items():
        contact_sheet([video], [caption], 4, tmp_path / name)
    short, long = (Image.open(tmp_path / name).size for name in ("short", "long"))
    assert short[0] == long[0] == 2 * 64 + 3 * MARGIN and long[1] > short[1] + 2 * FONT_SIZE


def test_contact_sheet_refuses_bad_input(tmp_path: Path) -> None:
    video = plain(100)
    bad = {
        r"sizes \[\(10, 30\), \(20, 30\)\]": ([video, video[:, :10]], ["a", "b"], 2),
        r"sizes \[\]": ([], [], 2),
        "captions has 1": ([video, video], ["a"], 2),
        "frames_per_video is 0": ([video], ["a"], 0),
        "float32": ([video.float()], ["a"], 2),
    }
    for message, (videos, captions, count) in bad.items():
        with pytest.raises(ValueError, match=message):
            contact_sheet(videos, captions, count, tmp_path / "sheet.png")


def test_contact_sheet_fills_columns_one_after_the_other(tmp_path):
    videos = [torch.full((1, 32, 32, 3), 40 * number, dtype=torch.uint8) for number in range(1, 4)]
    contact_sheet(videos, ["a", "b", "c"], 1, tmp_path / "one.png")
    contact_sheet(videos, ["a", "b", "c"], 1, tmp_path / "two.png", columns=2)
    one, two = (np.asarray(Image.open(tmp_path / name)) for name in ("one.png", "two.png"))
    assert two.shape[1] == 2 * one.shape[1] and two.shape[0] < one.shape[0]
    middle = one.shape[1] // 2
    left, right = two[:, middle, 0], two[:, one.shape[1] + middle, 0]
    assert {40, 80} <= set(left) and 120 not in left
    assert 120 in right and 40 not in right


def test_contact_sheet_marks_videos_in_red_and_has_a_heading(tmp_path):
    for name, options in {"without": {}, "with": {"remarks": ["", "not so"], "heading": "What is seen " * 9}}.items():
        contact_sheet([plain(40), plain(60)], ["a", "b"], 1, tmp_path / f"{name}.png", columns=2, **options)
    without, marked = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("without", "with"))

    def red(sheet: np.ndarray) -> np.ndarray:
        return (sheet[..., 0] > 200) & (sheet[..., 1:].max(-1) < 60)

    assert not red(without).any()
    assert red(marked)[:, 15 + MARGIN + 15 :].any() and not red(marked)[:, : 15 + MARGIN + 15].any()
    assert len(marked) > len(without) + 2 * FONT_SIZE and marked.shape[1] == without.shape[1]
