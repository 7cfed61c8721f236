"""Folders of videos as people have them."""

import csv

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vdq.data.folder import load_clips, read_clip
from vdq.data.listing import list_videos
from vdq.data.video import write_mp4


def video(frames=3, height=32, width=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator).byte()


def write_frames(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame.numpy()).save(folder / f"frame{number}.png")


@pytest.fixture
def folder(tmp_path):
    """Three videos whose names sort by number, and things that are none."""
    path = tmp_path / "videos"
    for number in (10, 2):
        write_mp4(path / f"v{number}.mp4", video(seed=number), 8)
    write_frames(path / "v3", video(12, seed=3))
    (path / "notes.txt").write_text("no video")
    (path / ".hidden.mp4").write_bytes(b"")
    (path / "empty folder").mkdir()
    return path


def names(clips):
    return [clip.path.name for clip in clips]


def test_files_and_folders_of_frames_in_the_order_of_their_numbers(folder):
    assert [path.name for path in list_videos("videos", folder).videos] == ["v2.mp4", "v3", "v10.mp4"]
    assert torch.equal(read_clip(folder / "v3"), video(12, seed=3))
    assert list_videos("videos", folder / "v3").videos == [folder / "v3"]
    assert list_videos("videos", folder / "v2.mp4").videos == [folder / "v2.mp4"]


def test_gif_equals_what_pillow_reads(tmp_path):
    flat = [Image.fromarray(np.full((16, 24, 3), level, np.uint8)) for level in (0, 90, 255)]
    flat[0].save(tmp_path / "a.gif", save_all=True, append_images=flat[1:])
    assert read_clip(tmp_path / "a.gif")[:, 3, 5, 1].tolist() == [0, 90, 255]


@pytest.mark.parametrize(("name", "codec", "tolerance"), [("a.avi", "ffv1", 0), ("a.webm", "libvpx-vp9", 4)])
def test_other_containers_hold_the_frames_that_were_encoded(tmp_path, name, codec, tolerance):
    """Written by PyAV: FFV1 in BGR is lossless, VP9 has no error to speak of on even grey."""
    levels = (0, 90, 255)
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=8, width=48, height=32)
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_clip(tmp_path / name)
    assert frames.shape == (3, 32, 48, 3)
    assert (frames.int() - torch.tensor(levels)[:, None, None, None]).abs().max() <= tolerance


def test_prompts_by_position_or_by_name(folder, tmp_path):
    text = tmp_path / "prompts.txt"
    text.write_text("two\nthree\nten\n")
    listed = load_clips(str(folder), str(text))
    assert [(clip.path.name, clip.prompt) for clip in listed.clips] == [
        ("v2.mp4", "two"),
        ("v3", "three"),
        ("v10.mp4", "ten"),
    ]
    assert listed.excluded == {}
    table = tmp_path / "prompts.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "file"], ["ten, really", "v10.mp4"], ["two", "somewhere/v2.mp4"]])
    listed = load_clips(str(folder), str(table))
    assert {clip.path.name: clip.prompt for clip in listed.clips} == {"v10.mp4": "ten, really", "v2.mp4": "two"}
    assert list(listed.excluded) == ["v3"] and "has no row" in listed.excluded["v3"]


def test_references_by_name_without_the_ending(folder, tmp_path):
    other = tmp_path / "other"
    write_frames(other / "v2", video())
    write_mp4(other / "v10.mp4", video(), 8)
    listed = load_clips(str(folder), reference=str(other))
    pairs = [(clip.path.name, clip.reference.name) for clip in listed.clips]
    assert pairs == [("v2.mp4", "v2"), ("v10.mp4", "v10.mp4")]
    assert list(listed.excluded) == ["v3"]
    single = load_clips(str(folder / "v2.mp4"), reference=str(other / "v10.mp4"))
    assert single.clips[0].reference == other / "v10.mp4"


def test_what_cannot_be_read_says_why(folder):
    (folder / "v4.mp4").write_bytes(b"")
    (folder / "v5.mp4").write_bytes(b"no video at all")
    write_frames(folder / "v6", video())
    (folder / "v6" / "frame1.png").write_bytes(b"damaged")
    write_frames(folder / "v7", [*video(), *video(1, 16, 16)])
    for name, reason in {"v4.mp4": "empty file", "v5.mp4": "cannot be", "v6": "damaged", "v7": "one size"}.items():
        with pytest.raises(ValueError, match=reason):
            read_clip(folder / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\ntwo\n", "2 prompts for 3 videos"),
        ("one\ntwo\nthree\nfour\n", "4 prompts for 3 videos"),
    ],
)
def test_as_many_prompts_as_videos(folder, tmp_path, content, message):
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_clips(str(folder), str(tmp_path / "p.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,text\na.mp4,x\n", "columns file,prompt"),
        ("file,prompt\n", "at least one row"),
        ("file,prompt\na.mp4,x\nb.mp4,\n", "line 3"),
        ("file,prompt\na.mp4,x\na.mp4,y\n", "several rows for a.mp4"),
        ("file,prompt\nv2.mp4,red, big star\n", "line 2 has more fields than there are columns"),
        ("file,prompt\nv2.mp4,   \n", "line 2 has no file or no prompt"),
        ("file,prompt\nv2.mp4\n", "line 2 has no file or no prompt"),
        ('file,prompt\nv2.mp4,"red star\nv3,blue\n', "cannot be read .unexpected end of data"),
        ('file,prompt\nv2.mp4,"a\nstar"\nv3,\n', "line 4 has no file"),
        ("", "columns file,prompt"),
    ],
)
def test_refuses_other_tables(folder, tmp_path, content, message):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_clips(str(folder), str(tmp_path / "p.csv"))


def test_rows_for_videos_that_are_not_there_are_listed(folder, tmp_path):
    (tmp_path / "p.csv").write_text("file,prompt\nv2.mp4,two\nv3,three\nv10.mp4,ten\nv11.mp4,gone\nnotes.txt,none\n")
    listed = load_clips(str(folder), str(tmp_path / "p.csv"))
    assert names(listed.clips) == ["v2.mp4", "v3", "v10.mp4"]
    assert listed.excluded.keys() == {"v11.mp4", "notes.txt"} and "has a row for it" in listed.excluded["v11.mp4"]
    assert load_clips(str(folder / "v2.mp4"), str(tmp_path / "p.csv")).excluded.keys() == {"v11.mp4"}  # v3 is there


def test_refuses_folders_without_videos(tmp_path, folder):
    with pytest.raises(ValueError, match="videos=.*nowhere must be a folder"):
        load_clips(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="reference=.*empty folder holds no video; allowed: .mp4, .m4v"):
        load_clips(str(folder), reference=str(folder / "empty folder"))
    write_frames(folder / "w" / "v2", video())
    write_mp4(folder / "w" / "v2.mp4", video(), 8)
    with pytest.raises(ValueError, match="reference has 2 videos named v2"):
        load_clips(str(folder), reference=str(folder / "w"))
