"""Oracles: tiny Xvid-style files whose frames show their number, and the published prompts of the classes."""

import logging
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vdq.data.read_video import read_video
from vdq.data.ucf101_clips import Ucf101Clips

LENGTHS = {
    "Archery/v_Archery_g01_c01.avi": 40,
    "Archery/v_Archery_g02_c01.avi": 12,
    "BabyCrawling/v_BabyCrawling_g01_c01.avi": 26,
    "BabyCrawling/v_BabyCrawling_g08_c02.avi": 16,
    "HandstandPushups/v_HandStandPushups_g01_c01.avi": 33,  # the two spellings are the data set's
}
LISTS = {
    "trainlist01": [f"{name} {number}" for number, name in enumerate(list(LENGTHS)[2:], start=1)],
    "testlist01": list(LENGTHS)[:2],
}
BITS = 6


def write_avi(path: Path, length: int) -> None:
    """MPEG-4 with B-frames, 64 x 32: blocks of 8 x 8 in the middle square show the frame's number in binary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qscale": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, 2
        stream.codec_context.codec_tag = "XVID"
        for number in range(length):
            frame = np.zeros((32, 64, 3), np.uint8)
            frame[:, 16:48] = 128
            for bit in range(BITS):
                frame[_block(bit, left=16)] = 235 if number >> bit & 1 else 20
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small UCF-101 with its lists, as the two archives extract side by side."""
    root = tmp_path_factory.mktemp("ucf101")
    for name, length in LENGTHS.items():
        write_avi(root / "UCF-101" / name, length)
    (root / "ucfTrainTestlist").mkdir()
    for name, lines in LISTS.items():
        (root / "ucfTrainTestlist" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def named(archive: Path, path: Path) -> str:
    """The name of a video as the lists have it."""
    return path.relative_to(archive / "UCF-101").as_posix()


def numbers(clip: torch.Tensor) -> list[int]:
    """The numbers that a clip's frames show."""
    return [sum((frame[_block(bit)].float().mean() > 128).item() << bit for bit in range(BITS)) for frame in clip]


def _block(bit: int, left: int = 0) -> tuple[slice, slice]:
    row, column = divmod(bit, 4)
    return slice(8 * row, 8 * row + 8), slice(left + 8 * column, left + 8 * column + 8)


def test_clips_are_the_middle_of_consecutive_frames(archive: Path) -> None:
    clips = Ucf101Clips(archive, num_clips=4, num_frames=16)
    assert len(clips) == 4 and len({clip.path for clip in clips.clips}) == 4, "no video twice"
    for index, (path, start) in enumerate(clips.clips):
        clip = clips[index]
        assert clip.dtype == torch.uint8 and clip.shape == (16, 32, 32, 3)
        assert numbers(clip) == list(range(start, start + 16)) and start + 16 <= LENGTHS[named(archive, path)]
        from_start = read_video(path)[start : start + 16, :, 16:48]
        assert (clip.float() - from_start.float()).abs().max() <= 2
    assert any(clip.start % 12 and clip.start for clip in clips.clips), "a start amid a group of pictures was tried"


def test_short_videos_are_left_out_and_counted(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = Ucf101Clips(archive, num_clips=3, num_frames=17)
    with caplog.at_level(logging.INFO):
        names = {named(archive, clip.path) for clip in clips.clips}
    assert names == {name for name, length in LENGTHS.items() if length >= 17}
    count = int(caplog.text.split(" videos with fewer than 17 frames left out")[0].split()[-1])
    assert 0 <= count <= 2
    with pytest.raises(ValueError, match="num_clips=4; at most 3 is allowed"):
        Ucf101Clips(archive, num_clips=4, num_frames=17)[0]


def test_all_short_videos_are_counted_when_all_are_needed(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match="at most 3"):
        Ucf101Clips(archive, num_clips=5, num_frames=17)[0]
    assert "2 videos with fewer than 17 frames left out" in caplog.text


def test_a_clip_depends_on_seed_and_index_only(archive: Path) -> None:
    def drawn(root: Path, **options: int) -> list[tuple[str, int]]:
        return [(clip.path.name, clip.start) for clip in Ucf101Clips(root, **options).clips]

    four = drawn(archive, num_clips=4)
    assert four == drawn(archive / "UCF-101", num_clips=4)
    assert four[:2] == drawn(archive, num_clips=2)
    others = [drawn(archive, num_clips=4, seed=seed) for seed in range(1, 9)]
    assert four not in others
    assert {tuple(name for name, _ in order) for order in others} != {tuple(name for name, _ in four)}
    starts = {start for order in [four, *others] for name, start in order if name == "v_Archery_g01_c01.avi"}
    assert len(starts) > 3 and max(starts) <= 40 - 16


@pytest.mark.parametrize("root", [".", "UCF-101"])
def test_splits_are_found_beside_the_videos(archive: Path, root: str) -> None:
    for split, names in {"train01": list(LENGTHS)[2:], "test01": list(LENGTHS)[:2], "all": list(LENGTHS)}.items():
        clips = Ucf101Clips(archive / root, split=split, num_clips=1)
        assert [named(archive, path) for path in clips.videos] == sorted(names)


def test_without_lists_all_files_count_and_are_reported_incomplete(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = tmp_path / "videos"
    write_avi(moved / "Archery" / "v_Archery_g01_c01.avi", 20)
    assert len(Ucf101Clips(moved, num_clips=1).videos) == 1
    assert "1 videos of 1 classes, UCF-101 13320 of 101" in caplog.text
    with pytest.raises(ValueError, match="split=train01 needs the official lists"):
        Ucf101Clips(moved, split="train01", num_clips=1)


def test_signature_names_settings_and_files(archive: Path, tmp_path: Path) -> None:
    one = Ucf101Clips(archive, num_clips=2)
    assert len(one.signature) == 64 and one.signature == Ucf101Clips(archive / "UCF-101", num_clips=2).signature
    changes = [{"num_clips": 3}, {"seed": 1}, {"num_frames": 8}, {"split": "test01"}]
    others = {Ucf101Clips(archive, **{"num_clips": 2, **change}).signature for change in changes}
    assert len(others) == len(changes) and one.signature not in others
    write_avi(tmp_path / "Archery" / "v_Archery_g01_c01.avi", 20)
    before = Ucf101Clips(tmp_path, num_clips=1).signature
    write_avi(tmp_path / "Archery" / "v_Archery_g01_c01.avi", 30)
    assert Ucf101Clips(tmp_path, num_clips=1).signature != before
    assert one.name == f"UCF-101 all: 2 clips of 16 frames, seed 0, read by PyAV {av.__version__}"


def test_another_reader_gives_another_set(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames may differ, so features that were kept must not be taken for them."""
    before = Ucf101Clips(archive, num_clips=2).signature
    monkeypatch.setattr("vdq.data.ucf101_clips.READER", "another one")
    assert Ucf101Clips(archive, num_clips=2).signature != before


def test_refuses_what_is_not_the_data_set(archive: Path, tmp_path: Path) -> None:
    bad = {
        "split=train04 is not known; allowed: all, train01": {"split": "train04"},
        "num_frames=0": {"num_frames": 0},
        "num_clips=0": {"num_clips": 0},
        "num_clips=6; at most the 5 videos of split all": {"num_clips": 6},
        "split_folder=.*nowhere does not exist": {"split_folder": tmp_path / "nowhere"},
        "has no trainlist02.txt": {"split": "train02"},
    }
    for message, options in bad.items():
        with pytest.raises(ValueError, match=message):
            Ucf101Clips(archive, **{"num_clips": 2, **options})
    with pytest.raises(ValueError, match="root=.*nowhere does not exist"):
        Ucf101Clips(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no class folders"):
        Ucf101Clips(tmp_path)


def test_a_half_extracted_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    write_avi(tmp_path / "Archery" / "v_Archery_g01_c01.avi", 20)
    with pytest.raises(ValueError) as raised:
        Ucf101Clips(tmp_path, split_folder=archive / "ucfTrainTestlist", num_clips=1)
    assert "lacks 4 of the 5 videos in trainlist01.txt and testlist01.txt" in str(raised.value)
    assert "the first Archery/v_Archery_g02_c01.avi" in str(raised.value)
    assert "2 class folders, the first BabyCrawling" in str(raised.value) and "\n" not in str(raised.value)


def test_a_broken_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "Archery").mkdir()
    (tmp_path / "Archery" / "v_Archery_g01_c01.avi").write_bytes(b"no video")
    with pytest.raises(ValueError, match="v_Archery_g01_c01.avi cannot be decoded"):
        Ucf101Clips(tmp_path, num_clips=1)[0]
