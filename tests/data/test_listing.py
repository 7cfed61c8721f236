"""Folders of videos as people have them: everything in them is a video, or has a reason why not."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from vdq.data.folder import load_clips, read_clip
from vdq.data.listing import list_videos
from vdq.data.video import write_mp4


def image(level: int = 0) -> Image.Image:
    return Image.fromarray(np.full((16, 16, 3), level, np.uint8))


@pytest.fixture
def folder(tmp_path):
    """With one video."""
    write_mp4(tmp_path / "videos" / "a.mp4", torch.zeros(2, 16, 16, 3, dtype=torch.uint8), 8)
    return tmp_path / "videos"


def copies(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((folder / "a.mp4").read_bytes())


def test_digits_come_first_and_a_stem_before_its_continuation(tmp_path):
    """The order of ``ls``, in which people write prompts, but for numbers of several digits."""
    names = ["1.mp4", "sample.mp4", "sample1.mp4", "sample2.mp4", "sample10.mp4", "sample10_b.mp4", "t.mp4"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in list_videos("videos", tmp_path).videos] == names
    (tmp_path / "p.txt").write_text("\n".join(f"of {name}" for name in names))
    listed = load_clips(str(tmp_path), str(tmp_path / "p.txt"))
    assert [(clip.path.name, clip.prompt) for clip in listed.clips] == [(name, f"of {name}") for name in names]


def test_folders_of_frames_in_the_order_of_their_numbers(tmp_path):
    for name in ("1²", "v1.10", "v1.5", "v1"):
        (tmp_path / name).mkdir()
        image().save(tmp_path / name / "0.png")
    assert [path.name for path in list_videos("videos", tmp_path).videos] == ["1²", "v1", "v1.5", "v1.10"]


def test_other_endings_are_videos_as_well(folder):
    copies(folder, "b.m4v", "c.TS", "d.mov")
    assert len(load_clips(str(folder)).clips) == 4


def test_names_that_cannot_be_used_are_listed(folder):
    os.symlink("nowhere.mp4", folder / "link.mp4")
    os.symlink("nowhere.txt", folder / "link.txt")
    try:
        copies(folder, os.fsdecode(b"caf\xe9.mp4"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (folder / "empty.mp4").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "a").write_bytes((folder / "a.mp4").read_bytes())
    listed = load_clips(str(folder))
    assert [clip.path.name for clip in listed.clips] == ["a.mp4"]
    assert listed.excluded == {
        "link.mp4": "it is a link to nowhere.mp4, which is not there",
        "caf\\xe9.mp4": "its name is not UTF-8",
        "empty.mp4": "it is a folder without frames",
    }
    assert listed.others == {
        "link.txt": "it is a link to nowhere.txt, which is not there",
        "pipe": "it is neither a file nor a folder",
        "a": "its name does not end like that of a video",
    }


def test_folders_in_a_folder(folder):
    copies(folder, "both/b.mp4", "nested/deeper/c.mp4")
    image().save(folder / "both" / "thumbnail.png")
    image().save(folder / "thumbnail.png")
    (folder / "empty").mkdir()
    listed = load_clips(str(folder))
    assert [clip.path.name for clip in listed.clips] == ["a.mp4"]
    nested = folder / "nested"
    assert listed.excluded == {
        "both": "it holds videos beside images",
        "nested": f"it is a folder with videos of its own, which videos={nested} scores",
    }
    assert listed.others == {"thumbnail.png": "it is an image", "empty": "it is a folder without frames"}


def test_animated_images_are_no_frames(tmp_path, folder):
    images = [image(level) for level in (0, 90, 255)]
    for number in range(3):
        for place in (tmp_path / "frames", folder):
            place.mkdir(exist_ok=True)
            images[0].save(place / f"{number}.webp", save_all=True, append_images=images[1:])
    with pytest.raises(ValueError, match="frames has the animated image 0.webp"):
        read_clip(tmp_path / "frames")
    listed = load_clips(str(tmp_path / "frames"))
    assert not listed.clips and list(listed.excluded) == ["0.webp", "1.webp", "2.webp"]
    listed = load_clips(str(folder))
    assert len(listed.clips) == 1 and set(listed.excluded.values()) == {"it is an animated image"}


def test_an_unusable_video_keeps_its_place_among_the_prompts(folder):
    os.symlink("nowhere.mp4", folder / "b.mp4")
    copies(folder, "c.mp4")
    (folder / "p.txt").write_text("one\ntwo\nthree\n")
    listed = load_clips(str(folder), str(folder / "p.txt"))
    assert [clip.prompt for clip in listed.clips] == ["one", "three"] and list(listed.excluded) == ["b.mp4"]


def test_an_unusable_reference_is_the_reason(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    os.symlink("nowhere", other / "a.mp4")
    assert (
        "its reference cannot be used: it is a link" in load_clips(str(folder), reference=str(other)).excluded["a.mp4"]
    )
