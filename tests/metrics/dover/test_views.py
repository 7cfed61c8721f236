"""Oracles: formulas written out for single pixels and frames; the published views are in tests/parity/test_dover.py."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vdq.metrics.dover import views
from vdq.metrics.dover.views import AestheticView, FrameSampling, TechnicalView

SMALL = TechnicalView(
    clips=2,
    clip_frames=4,
    frame_interval=1,
    fragments_h=2,
    fragments_w=3,
    fragment_h=8,
    fragment_w=4,
    aligned=2,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_video(frames: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator(1)).byte()


def test_sixteen_frames_repeat_as_published() -> None:
    """As in the published program, the aesthetic branch has frame 0 alone and the technical clips wrap around."""
    starts = views.draw_starts(AestheticView().frames, 16, generator())
    assert views.frame_indices(AestheticView().frames, 16, starts).tolist() == [0] * 32
    starts = views.draw_starts(TechnicalView().frames, 16, generator())
    clips = views.frame_indices(TechnicalView().frames, 16, starts).view(3, 32)
    assert clips[:, 0].tolist() == [0, 5, 10]
    assert clips[1, :10].tolist() == [5, 7, 9, 11, 13, 15, 1, 3, 5, 7]


def test_starts_use_all_places_and_no_other() -> None:
    frames = FrameSampling(length=4, fragments=2, interval=3, repeats=100)
    assert frames.choices(24) == 1 and frames.choices(34) == 5
    assert views.draw_starts(frames, 24, generator()).unique().tolist() == [0]
    starts = views.draw_starts(frames, 34, generator())
    assert starts.shape == (100, 2) and starts.unique().tolist() == [0, 1, 2, 3, 4]
    assert views.frame_indices(frames, 34, starts).max() <= 33


def test_every_fragment_shows_its_place_of_the_video() -> None:
    video = random_video(5, 30, 41)
    clips = views.technical_clips(video, SMALL, generator(3))
    assert clips.shape == (2, 3, 4, 16, 12) and clips.dtype == torch.float32

    again = generator(3)
    starts = views.draw_starts(SMALL.frames, 5, again)
    index = views.frame_indices(SMALL.frames, 5, starts).tolist()
    down, right = views.draw_offsets(SMALL, 30, 41, again)
    assert down.shape == (2, 3, 4) and down.max() <= 30 // 2 - 8 - 1 and right.max() <= 41 // 3 - 4 - 1
    for frame, (i, j), (y, x), colour in [(0, (0, 0), (0, 0), 0), (3, (1, 2), (7, 3), 1), (6, (0, 1), (5, 2), 2)]:
        place = (15 * i + int(down[i, j, frame // 2]) + y, 13 * j + int(right[i, j, frame // 2]) + x)
        expected = (float(video[index[frame], *place, colour]) - views.MEAN[colour]) / views.STD[colour]
        assert clips[frame // 4, colour, frame % 4, 8 * i + y, 4 * j + x].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "stale", "room"),
    [(200, 320, True, 13), (200, 320, False, 19), (320, 200, True, 13), (224, 640, False, 59)],
)
def test_no_number_is_drawn_where_nothing_is_chosen(height: int, width: int, stale: bool, room: int) -> None:
    """Starts of 16 frames are fixed and one side has no room: the other side gets the first numbers of the stream."""
    video, view = random_video(16, height, width), TechnicalView(stale_grid=stale)
    size = (height, width) if stale else views.enlarge(video, view).shape[1:3]
    drawn = torch.randint(room, (7, 7, 3), generator=generator(104))
    if room == 13:
        assert drawn[0, :3].tolist() == [[7, 4, 7], [11, 6, 3], [5, 0, 7]]  # as upstream drew them

    stream = generator(104)
    views.draw_starts(view.frames, 16, stream)
    offsets = views.draw_offsets(view, *size, stream)
    fixed, free = offsets if width > height else offsets.flip(0)
    assert torch.equal(free, drawn) and not fixed.any()
    assert torch.equal(views.technical_clips(video, view, generator(104)), cut(video, view, size, offsets))


def cut(video: Tensor, view: TechnicalView, size: tuple[int, int], offsets: Tensor) -> Tensor:
    """The technical view of a video whose starts are fixed."""
    index = views.frame_indices(view.frames, len(video), torch.zeros(1, view.clips).long())
    return views.normalize(views.cut_fragments(views.enlarge(video, view), index, view, size, offsets), view.clips)


def test_views_depend_on_the_generator_alone() -> None:
    video = random_video(5, 30, 41)
    torch.manual_seed(0)
    first = views.technical_clips(video, SMALL, generator(3))
    torch.manual_seed(1)
    assert torch.equal(first, views.technical_clips(video, SMALL, generator(3)))
    assert not torch.equal(first, views.technical_clips(video, SMALL, generator(4)))


@pytest.mark.parametrize(("stale", "reach"), [(False, 0.9), (True, 0.7)])
def test_small_videos_are_enlarged_and_seen_to_the_edge(stale: bool, reach: float) -> None:
    """A ramp from left to right: with upstream's stale grid the right part of the enlarged video is never seen."""
    ramp = torch.arange(160).byte()[None, None, :, None].expand(2, 160, 160, 3).contiguous()
    view = TechnicalView(clips=1, clip_frames=2, aligned=2, stale_grid=stale)
    clips = views.technical_clips(ramp, view, generator())
    brightest = clips[0, 0].max() * views.STD[0] + views.MEAN[0]
    assert clips.shape == (1, 3, 2, 224, 224)
    assert (brightest > reach * 160) and (stale == bool(brightest < 0.9 * 160))


def test_aesthetic_frames_equal_the_bilinear_formula() -> None:
    video = random_video(7, 12, 9)
    view = AestheticView(clips=1, clip_frames=4, time_fragments=2, frame_interval=1, height=5, width=6)
    index = views.frame_indices(view.frames, 7, torch.zeros(1, 2).long())
    assert index.tolist() == [0, 1, 3, 4]
    small = views.resize(video[index], view)
    rows, columns = (bilinear_matrix(n, m) for n, m in ((12, 5), (9, 6)))
    expected = np.einsum("ay,tyxc,bx->tabc", rows, video[index].double().numpy(), columns)
    assert np.abs(small.numpy() - expected).max() <= 0.5 + 1e-4
    clips = views.aesthetic_clips(video, view, generator())
    assert clips.shape == (1, 3, 4, 5, 6) and torch.equal(clips, views.normalize(small, 1))


def bilinear_matrix(n: int, m: int) -> np.ndarray:
    """[m, n] weights of sampling n pixels at the centres of m, without antialias."""
    centres = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(n)))


@pytest.mark.parametrize(
    ("view", "parameters", "message"),
    [
        (TechnicalView, {"clips": 0}, "clips is 0; an integer >= 1"),
        (TechnicalView, {"fragment_h": 1.5}, "fragment_h is 1.5"),
        (TechnicalView, {"aligned": 5}, "aligned is 5; a divisor of clips . clip_frames = 96"),
        (AestheticView, {"time_fragments": 5}, "time_fragments is 5; a divisor of clip_frames = 32"),
        (AestheticView, {"height": -1}, "height is -1"),
    ],
)
def test_refuses_bad_parameters(view: type, parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        view(**parameters)
