"""What W&B was given, read back from the files of an offline run."""

import json
import logging
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from vdq.data.samples import video_path
from vdq.data.video import write_mp4

wandb = pytest.importorskip("wandb")

from wandb.proto import wandb_internal_pb2  # noqa: E402

from vdq.tracking.wandb import WandbTracker  # noqa: E402

BLOCK, PIECE, FULL, LAST = 32768, struct.Struct("<IHB"), 1, 4
REPORT = pd.DataFrame(
    {"fqn": ["blocks.0.attn.q", "t_block.1"], "kind": ["static", "full_precision"], "weight_bits": [4, None]}
)


@dataclass
class Logged:
    """Everything of one run file; later values of a key win, as in W&B."""

    folder: Path
    config: dict = field(default_factory=dict)
    values: dict = field(default_factory=dict)
    staged: dict[str, Path] = field(default_factory=dict)  # what a table holds: where it waits to be uploaded
    run: object = None
    exited: bool = False

    def table(self, key: str) -> pd.DataFrame:
        content = json.loads(self.staged[f"{key}.table.json"].read_text())
        return pd.DataFrame(content["data"], columns=content["columns"])


def read(folder: Path) -> Logged:
    path = next(folder.glob("wandb/offline-run-*/run-*.wandb"))
    logged = Logged(path.parent)
    for record in records(path):
        if record.WhichOneof("record_type") == "run":
            logged.run = record.run
        logged.exited |= record.WhichOneof("record_type") == "exit"
        for update in (*record.run.config.update, *record.config.update):
            logged.config[update.key] = json.loads(update.value_json)
        for item in (*record.history.item, *record.summary.update):
            logged.values[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        for entry in record.artifact.manifest.contents:
            logged.staged[entry.path] = Path(entry.local_path)
    return logged


def eventually(folder: Path, seconds: int = 60) -> Logged:
    """What W&B has written when its process is done; on a busy machine that takes a while."""
    for _ in range(2 * seconds):
        logged = read(folder)
        if logged.run is not None and logged.staged and logged.exited:
            return logged
        time.sleep(0.5)
    raise TimeoutError(f"W&B did not finish {folder} in {seconds} s")


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The file is a LevelDB log: blocks of 32 KiB, whose pieces have a checksum, a length and a kind before them."""
    content, position, record = path.read_bytes(), 7, b""  # after the file's own header
    while position < len(content):
        left = BLOCK - position % BLOCK
        if left < PIECE.size:  # too short for another piece
            position += left
            continue
        _, length, kind = PIECE.unpack_from(content, position)
        record += content[position + PIECE.size : position + PIECE.size + length]
        position += PIECE.size + length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


@pytest.fixture(scope="module")
def per_video(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("video", "reference")}
    for seed, folder in enumerate(folders.values()):
        for index in range(2):
            torch.manual_seed(10 * seed + index)
            write_mp4(video_path(folder, index), torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8), 8)
    table = pd.DataFrame({"index": [0, 1], "prompt": ["a red square", "a blue circle"], "psnr": [30.0, 40.0]})
    return table.assign(**{name: [str(video_path(f, i)) for i in range(2)] for name, f in folders.items()})


RESULT = {
    "name": "asq_w4a8_shapes",
    "dataset": "shapes",
    "num_prompts": 16,
    "seed": 42,
    "model": "shapes",
    "quant": "asq",
    "bits": "w4a8",
    "signature": "0123456789",
    "reference": "9876543210",
    "size_mb": 2.5,
    "psnr": 35.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    pd.DataFrame({"step": [0, 1], "act_bits": [8, 4]}).to_csv(folder / "step_bits.csv", index=False)
    pd.DataFrame({"index": [0]}).to_csv(folder / "per_video.csv", index=False)
    Image.new("RGB", (8, 8), "red").save(folder / "act_bits.png")
    return folder


@pytest.fixture(scope="module")
def logged(folder: Path, per_video: pd.DataFrame) -> Logged:
    tracker = WandbTracker(mode="offline", tags=["mine"])
    config = {"quant": {"name": "asq", "alpha": 0.3}, "seed": 42}
    tracker.log(folder, config, RESULT, {"psnr": 35.0}, per_video, REPORT)
    assert wandb.run is None  # the next run of a sweep gets its own
    return eventually(folder)


def test_run_can_be_found(logged):
    assert (logged.run.project, logged.run.display_name) == ("vdq", "asq_w4a8_shapes")
    assert logged.run.run_group == "shapes, 16 prompts, seed 42"
    assert set(logged.run.tags) == {"asq", "w4a8", "shapes", "mine"}


def test_config_signature_metrics_and_size(logged):
    assert logged.config["quant"] == {"name": "asq", "alpha": 0.3} and logged.config["seed"] == 42
    assert logged.values["psnr"] == 35.0
    assert (logged.values["signature"], logged.values["reference"]) == ("0123456789", "9876543210")
    assert logged.values["size_mb"] == 2.5


def test_every_layer_is_reported(logged):
    table = logged.table("quantization_report")
    assert table["fqn"].tolist() == ["blocks.0.attn.q", "t_block.1"]
    assert table["kind"].tolist() == ["static", "full_precision"]


def test_tables_and_pictures_of_the_method_are_there(logged, folder):
    assert logged.table("step_bits")["act_bits"].tolist() == [8, 4]
    picture = [logged.values[f"act_bits.{name}"] for name in ("_type", "width", "height")]
    assert picture == ["image-file", 8, 8]
    assert "per_video.table.json" not in logged.staged  # its values stand beside the videos


def test_videos_stand_beside_their_references_as_mp4(logged, per_video):
    table = logged.table("videos")
    assert table["prompt"].tolist() == ["a red square", "a blue circle"] and table["psnr"].tolist() == [30.0, 40.0]
    for column in ("video", "reference"):
        for media, original in zip(table[column], per_video[column], strict=True):
            assert media["_type"] == "video-file" and media["path"].endswith(".mp4")
            assert logged.staged[media["path"]].read_bytes() == Path(original).read_bytes()


def test_full_precision_has_neither_report_nor_references(tmp_path, per_video, caplog):
    result = RESULT | {"reference": RESULT["signature"], "quant": "fp16"}
    with caplog.at_level(logging.INFO, logger="vdq"):
        WandbTracker(mode="offline").log(tmp_path, {}, result, {}, per_video.drop(columns="reference"), pd.DataFrame())
    logged = eventually(tmp_path)
    assert "quantization_report.table.json" not in logged.staged
    assert "reference" not in logged.table("videos") and len(logged.table("videos")) == 2
    assert "wandb leet " in caplog.text and "wandb sync " in caplog.text
    where = caplog.text.partition("wandb sync ")[2].split("`")[0]
    assert Path(where).resolve() == logged.folder.resolve()  # what can be pasted into a shell


def test_nothing_waits_outside_of_the_run_folder(logged, folder):
    assert all(path.is_relative_to(folder.resolve()) for path in logged.staged.values())


def test_an_offline_run_can_be_moved_with_its_videos(logged, folder, per_video, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    moved = read(tmp_path / "moved")
    for column in ("video", "reference"):
        names = [video["path"] for video in moved.values[f"{column}_files.videos"]]
        assert [(moved.folder / "files" / name).read_bytes() for name in names] == [
            Path(path).read_bytes() for path in per_video[column]
        ]
        assert moved.values[f"{column}_files.captions"] == ["a red square", "a blue circle"]
    # W&B itself writes where the files of tables lie, which is why videos are logged twice.
    assert not any(path.is_relative_to(tmp_path) for path in moved.staged.values())


def test_what_cannot_be_logged_is_told_before_anything_is_computed(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ValueError, match="WANDB_MODE=sometimes must be one of online, offline, disabled"):
        WandbTracker().check()
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandbTracker().check()
    monkeypatch.setattr("vdq.tracking.wandb.wandb.login", lambda **_: False)
    with pytest.raises(ValueError, match="logger.mode=online needs an account: run `wandb login`"):
        WandbTracker(mode="online").check()


def test_home_need_not_be_writable(tmp_path, per_video, monkeypatch):
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.delenv(f"WANDB_{name}_DIR", raising=False)
    monkeypatch.setenv("HOME", "/proc")  # where nobody can write, not even root
    WandbTracker(mode="offline").log(tmp_path, {}, RESULT, {}, per_video, pd.DataFrame())
    assert len(eventually(tmp_path).table("videos")) == 2


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="logger.mode=sometimes must be online, offline, disabled or null"):
        WandbTracker(mode="sometimes")
