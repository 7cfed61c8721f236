"""Real clips of UCF-101 from the extracted archive: the real set of FVD.

The archive holds `UCF-101/<ClassName>/v_<ClassName>_gXX_cYY.avi`, 13,320 videos of 101 classes at 25 frames per second
and 320 x 240 pixels; the official splits come beside it as `ucfTrainTestlist/` (Soomro et al., arXiv 1212.0402).
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vdq.data.read_video import READER, read_video
from vdq.errors import UserError

logger = logging.getLogger(__name__)

NUM_VIDEOS, NUM_CLASSES = 13_320, 101
VIDEO_FOLDER, SPLIT_FOLDER = "UCF-101", "ucfTrainTestlist"
# Test and training list of a fold are disjoint and hold every video between them.
SPLITS = {"all": ("trainlist01", "testlist01")} | {
    f"{part}{fold}": (f"{part}list{fold}",) for part in ("train", "test") for fold in ("01", "02", "03")
}


class Clip(NamedTuple):
    """`num_frames` consecutive frames of a video from frame `start` on."""

    path: Path
    start: int


class Ucf101Clips(Dataset):
    """Clips of real videos: item i is uint8 RGB [num_frames, S, S, 3], the middle square of clip i's frames.

    Drawn as by StyleGAN-V (Skorokhodov et al., arXiv 2112.14683), whose I3D network `vdq.metrics.fvd` uses: 2,048
    clips of 16 consecutive frames, one clip a video from a random start, shorter videos left out, frames cropped to
    their middle square, so that the network's resizing does not squash real videos beside square generated ones. Two
    things differ. Upstream's metric takes the first 2,048 videos of its folder, which of UCF-101 would be the first
    classes only; here the videos are drawn from the whole split. Upstream scales frames to the generator's size and
    stores them as JPEG; here they keep their size (S = 240), and the network alone resizes them.

    Which video is the i-th and where its clip starts are hashes of the seed and the video's name: the same on every
    machine, in any order of reading, and for any `num_clips` > i. Videos are opened when the first clip is read.

    Args:
        root: the folder of the class folders, or one that holds it as `UCF-101`.
        split: `all`, `train01`..`train03` or `test01`..`test03`.
        split_folder: folder of the official lists; None looks for `ucfTrainTestlist` in and beside the videos' folder.
            `all` needs no lists, but only with them a video that is missing is noticed by name.
        num_frames: frames of a clip.
        num_clips: number of clips, at most the number of videos that are long enough.
        seed: another one draws other clips.

    Attributes:
        name: what was drawn and which reader gives its pixels, as a table should call it.
        signature: hexadecimal SHA-256 of these settings and of the names and sizes of the split's videos.

    Raises:
        UserError: for a folder without the videos, missing videos or lists, another split, or numbers out of range.
    """

    unsigned = ("root", "split_folder")

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "all",
        split_folder: str | Path | None = None,
        num_frames: int = 16,
        num_clips: int = 2048,
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"split={split} is not known; allowed: {', '.join(SPLITS)}")
        for field, value in {"num_frames": num_frames, "num_clips": num_clips}.items():
            if value < 1:
                raise UserError(f"{field}={value}; an integer >= 1 is allowed")
        root = Path(root).expanduser()
        self.folder = _video_folder(root)
        self.videos = _videos_of_split(self.folder, split, _split_folder(root, self.folder, split_folder))
        self.num_frames, self.num_clips, self.seed = num_frames, num_clips, seed
        self.name = f"UCF-101 {split}: {num_clips} clips of {num_frames} frames, seed {seed}, read by {READER}"
        if num_clips > len(self.videos):
            raise UserError(f"num_clips={num_clips}; at most the {len(self.videos)} videos of split {split} is allowed")

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> Tensor:
        path, start = self.clips[index]
        # From the first frame on: AVI, with the B-frames that Xvid writes, tells no times to seek by.
        return _middle_square(read_video(path)[start : start + self.num_frames])

    @cached_property
    def signature(self) -> str:
        files = [[self._name(path), path.stat().st_size] for path in self.videos]
        return hashlib.sha256(json.dumps([self.name, "middle square", files]).encode()).hexdigest()

    @cached_property
    def clips(self) -> list[Clip]:
        """The clips in their order; raises UserError if too few videos are long enough, or one cannot be read."""
        clips, short = [], 0
        with tqdm(total=self.num_clips, desc="drawing clips of UCF-101", unit="clip") as bar:
            for path in sorted(self.videos, key=lambda path: self._hash(path, "order")):
                if len(clips) == self.num_clips:
                    break
                starts = len(read_video(path)) - self.num_frames + 1
                if starts < 1:
                    short += 1
                    continue
                clips.append(Clip(path, self._hash(path, "start") % starts))
                bar.update()
        logger.info("%s: %d videos with fewer than %d frames left out", self.name, short, self.num_frames)
        if len(clips) < self.num_clips:
            raise UserError(
                f"num_clips={self.num_clips}; at most {len(clips)} is allowed, the number of videos with at least "
                f"{self.num_frames} frames"
            )
        return clips

    def _hash(self, path: Path, purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{purpose}/{self._name(path)}".encode()).digest())

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _video_folder(root: Path) -> Path:
    if not root.is_dir():
        raise UserError(f"root={root} does not exist; the folder of the extracted UCF-101 is allowed")
    for folder in (root / VIDEO_FOLDER, root):
        if any(folder.glob("*/*.avi")):
            return folder
    raise UserError(
        f"root={root} holds no class folders with .avi files; the folder of the extracted UCF-101 is allowed"
    )


def _split_folder(root: Path, videos: Path, given: str | Path | None) -> Path | None:
    if given is not None:
        if not Path(given).expanduser().is_dir():
            raise UserError(f"split_folder={given} does not exist; the folder of the lists of UCF-101 is allowed")
        return Path(given).expanduser()
    places = (videos, videos.resolve().parent, root.resolve().parent)
    return next((place / SPLIT_FOLDER for place in places if (place / SPLIT_FOLDER).is_dir()), None)


def _videos_of_split(folder: Path, split: str, lists: Path | None) -> list[Path]:
    if lists is not None:
        return _listed_videos(folder, [lists / f"{name}.txt" for name in SPLITS[split]])
    if split != "all":
        raise UserError(
            f"split={split} needs the official lists, and {folder} has no {SPLIT_FOLDER} in or beside it; "
            f"split_folder=FOLDER or split=all is allowed"
        )
    videos = sorted(folder.glob("*/*.avi"))
    classes = len({path.parent for path in videos})
    if (len(videos), classes) != (NUM_VIDEOS, NUM_CLASSES):
        logger.warning(
            "%s has %d videos of %d classes, UCF-101 %d of %d", folder, len(videos), classes, NUM_VIDEOS, NUM_CLASSES
        )
    return videos


def _listed_videos(folder: Path, lists: list[Path]) -> list[Path]:
    """The videos in the lists, which must exist; a line is `Class/video.avi` or, for training, `Class/video.avi 1`."""
    for path in lists:
        if not path.is_file():
            raise UserError(f"split_folder={path.parent} has no {path.name}; all lists of UCF-101 are needed")
    lines = [line for path in lists for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    videos = sorted(folder / line.split()[0] for line in lines)
    missing = [path for path in videos if not path.is_file()]
    if missing:
        classes = sorted({path.parent.name for path in missing if not path.parent.is_dir()})
        absent = f", and {len(classes)} class folders, the first {classes[0]}" if classes else ""
        raise UserError(
            f"root={folder} lacks {len(missing)} of the {len(videos)} videos in {' and '.join(p.name for p in lists)}, "
            f"the first {missing[0].relative_to(folder).as_posix()}{absent}; all of them must be extracted"
        )
    return videos


def _middle_square(frames: Tensor) -> Tensor:
    """[T,H,W,3] -> [T,S,S,3] with S = min(H, W)."""
    side = min(frames.shape[1:3])
    top, left = ((size - side) // 2 for size in frames.shape[1:3])
    return frames[:, top : top + side, left : left + side]
