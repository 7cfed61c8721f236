"""Oracles: the command ffmpeg (recorded, and run where it is installed), decord on plain video, PIL and numpy."""

import io
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vdq.data.read_video import read_video

FIELDS = 1 << 18 | 1 << 29  # flags of an encoder: interlaced transform and motion


def encode(
    path: Path, frames: Sequence[np.ndarray | av.VideoFrame], codec: str, pixels: str, flags: int = 0, **options
):
    """Writes RGB images or frames, 8 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options)
        frames = [av.VideoFrame.from_ndarray(f, "rgb24") if isinstance(f, np.ndarray) else f for f in frames]
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pixels
        stream.codec_context.flags |= flags
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_planes(pixels: str, planes: Sequence[np.ndarray]) -> av.VideoFrame:
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pixels)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    return frame


def steep(height: int, width: int, bits: int = 8) -> list[np.ndarray]:
    """Planes Y, U, V of 4:2:0 that change a lot from pixel to pixel."""
    sizes = [(height, width), *[(-(-height // 2), -(-width // 2))] * 2]
    planes = [
        60 + (37 * x + 61 * y + 83 * i) % 140
        for i, size in enumerate(sizes)
        for y, x in [np.mgrid[: size[0], : size[1]]]
    ]
    return [(plane << bits - 8).astype(np.uint8 if bits == 8 else np.uint16) for plane in planes]


def ramp(frames: int = 24, side: int = 64) -> list[np.ndarray]:
    """RGB frames with a square that moves, on a ground that differs from frame to frame."""
    y, x = np.mgrid[:side, :side]
    images = [np.stack([3 * x + 2 * t, 200 - 2 * y + t, 60 + x + y - 2 * t], -1).clip(0, 255) for t in range(frames)]
    for t, image in enumerate(images):
        image[8:20, 2 * t : 2 * t + 12] = (250 - 9 * t, 20, 40)
    return [image.astype(np.uint8) for image in images]


def cut_without_encoding(path: Path, target: Path, seconds: float, **options: str) -> Path:
    """As ``ffmpeg -ss SECONDS -i path -c copy target``: all packets, and an edit list that hides the first frames."""
    with av.open(str(path)) as source, av.open(str(target), "w", options=options) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                shift = round(seconds / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                container.mux(packet)
    return target


@pytest.fixture(scope="module")
def x264(tmp_path_factory) -> Path:
    """64 x 64, 8 frames a second, 3 s, three B-frames, a key frame every 8."""
    path = tmp_path_factory.mktemp("x264") / "full.mp4"
    return encode(path, ramp(), "libx264", "yuv420p", bf="3", g="8", x264opts="b-adapt=0:scenecut=0")


def test_an_edit_list_hides_frames(x264, tmp_path):
    """Readers that ignore it give 24 frames, of which the last repeat."""
    frames = read_video(cut_without_encoding(x264, tmp_path / "cut.mp4", 0.4))
    assert len(frames) == 20 and torch.equal(frames, read_video(x264)[4:])


# What ffmpeg 5.1.9 makes of `steep` planes at rows 7 and 20 and every ninth column. Readers that do not convert as it
# does differ by 8 to 23 levels on average.
RECORDED = {
    "odd.avi": [
        [(111, 18, 137), (186, 79, 165), (230, 164, 157), (80, 85, 68), (124, 151, 156)],
        [(184, 131, 255), (123, 63, 0), (225, 88, 82), (198, 183, 203), (59, 88, 168)],
    ],
    "ten.mkv": [
        [(91, 23, 148), (166, 76, 226), (246, 157, 141), (158, 45, 55), (103, 158, 164)],
        [(147, 153, 255), (76, 81, 0), (216, 84, 109), (255, 137, 187), (66, 89, 131)],
    ],
}


@pytest.fixture(scope="module")
def kinds(x264, tmp_path_factory) -> dict[str, Path]:
    """Files that readers disagree on, by name."""
    folder = tmp_path_factory.mktemp("kinds")
    odd, ten = with_planes("yuv420p", steep(33, 41)), with_planes("yuv420p10le", steep(32, 40, 10))
    files = [
        cut_without_encoding(x264, folder / "cut.mp4", 0.4),
        encode(folder / "odd.avi", [odd], "ffv1", "yuv420p"),
        encode(folder / "ten.mkv", [ten], "ffv1", "yuv420p10le"),
        encode(folder / "fields.mp4", ramp(4), "libx264", "yuv420p", FIELDS),
        encode(folder / "fields.ts", ramp(4), "mpeg2video", "yuv420p", FIELDS),
        turned(encode(folder / "turned.mp4", ramp(4), "libx264", "yuv420p"), (0, 1, -1, 0)),
    ]
    return {file.name: file for file in files}


@pytest.mark.parametrize("name", RECORDED)
def test_odd_sizes_and_ten_bits_are_converted_as_ffmpeg_does(name, kinds):
    """Up to rounding, which other processors may do otherwise."""
    shown = read_video(kinds[name])[0, [7, 20], ::9]
    assert (shown.int() - torch.tensor(RECORDED[name])).abs().max() <= 2


@pytest.mark.parametrize("name", ["cut.mp4", "odd.avi", "ten.mkv", "fields.mp4", "fields.ts", "turned.mp4"])
def test_every_kind_is_read_as_the_command_ffmpeg_reads_it(name, kinds):
    assert np.abs(read_video(kinds[name]).numpy().astype(int) - of_ffmpeg(kinds[name])).max() <= 2  # of another FFmpeg


def of_ffmpeg(path: Path) -> np.ndarray:
    """What the command shows of a video, every frame once; skips the test where it is not installed."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    options = "-vsync passthrough -pix_fmt rgb24 -c:v ppm -f image2pipe".split()
    command = ["ffmpeg", "-v", "error", "-i", str(path), *options, "-"]
    shown = io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout)
    frames = []
    while magic := shown.readline():
        width, height = map(int, shown.readline().split())
        assert (magic, shown.readline()) == (b"P6\n", b"255\n")
        frames.append(np.frombuffer(shown.read(3 * width * height), np.uint8).reshape(height, width, 3))
    return np.stack(frames)


def test_interlaced_frames_are_read_as_whole_frames(tmp_path):
    """Lossless, so the same frames must come back whether their lines belong to fields or not."""
    frames = {}
    for name, flags in {"fields": FIELDS, "frames": 0}.items():
        encode(tmp_path / f"{name}.mp4", ramp(4), "libx264", "yuv420p", flags, crf="0")
        frames[name] = read_video(tmp_path / f"{name}.mp4")
    with av.open(str(tmp_path / "fields.mp4")) as container:
        assert next(container.decode(video=0)).interlaced_frame
    assert torch.equal(frames["fields"], frames["frames"])


def turned(path: Path, matrix: tuple[float, float, float, float], name: str = "turned.mp4") -> Path:
    """The MP4 file with another display matrix (a, b, c, d), 44 bytes behind the name of its header's box."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (round(65536 * value) for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.with_name(name).write_bytes(content)
    return path.with_name(name)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    ],
)
def test_videos_are_turned_and_mirrored_as_they_say(matrix, expected, tmp_path):
    path = encode(tmp_path / "a.mp4", [frame[:, :48] for frame in ramp(2)], "libx264", "yuv444p")
    plain, frames = read_video(path), read_video(turned(path, matrix))
    for frame, original in zip(frames.numpy(), plain.numpy(), strict=True):
        assert np.array_equal(frame, expected(original))
    assert np.abs(frames.numpy().astype(int) - of_ffmpeg(path.with_name("turned.mp4"))).max() <= 2


def test_other_angles_are_refused(x264, tmp_path):
    path = shutil.copy(x264, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="turned by an angle that is no multiple of 90"):
        read_video(turned(path, (0.7071, 0.7071, -0.7071, 0.7071)))


def test_a_phones_video_is_upright(media):
    assert read_video(media / "videos" / "video_90.mov").shape[1:3] == (568, 320)


def test_another_reader_agrees_on_plain_video(x264):
    decord = pytest.importorskip("decord")
    assert np.array_equal(read_video(x264), decord.VideoReader(str(x264)).get_batch(range(24)).asnumpy())


def test_gif(tmp_path):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    images = [Image.new("RGB", (16, 12), colour) for colour in colours]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    frames = read_video(tmp_path / "a.gif")
    assert frames.shape == (3, 12, 16, 3)
    assert (frames[:, 0, 0] - torch.tensor(colours)).abs().max() <= 6


CONTAINERS = {"mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "gif": "gif", "mp4": "libx264", "mov": "mjpeg"}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_file_that_breaks_off_is_refused(kind, tmp_path):
    """FFmpeg reads the part that is there and says nothing."""
    codec = CONTAINERS[kind]
    pixels = {"gif": "rgb8", "mov": "yuvj420p"}.get(kind, "yuv420p")
    whole = encode(tmp_path / f"whole.{kind}", ramp(12), codec, pixels).read_bytes()
    assert len(read_video(tmp_path / f"whole.{kind}")) == 12
    path = tmp_path / f"part.{kind}"
    for share in (0.4, 0.6, 0.8, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=f"part.{kind} cannot be decoded"):
            read_video(path)


def test_a_damaged_frame_is_refused(tmp_path):
    """Decoders show such a frame as well as they can: here grey from where its data end, there with lines repeated."""
    path = encode(tmp_path / "a.mov", ramp(12), "mjpeg", "yuvj420p")
    fast = cut_without_encoding(path, tmp_path / "b.mov", 0, movflags="faststart")  # whose last bytes are a frame's
    fast.write_bytes(fast.read_bytes()[:-10])
    content = bytearray(encode(tmp_path / "c.mp4", ramp(12), "libx264", "yuv420p").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 30] = bytes(30)
    (tmp_path / "c.mp4").write_bytes(content)
    for name in ("b.mov", "c.mp4"):
        with pytest.raises(ValueError, match=f"{name} cannot be decoded .it is damaged or breaks off"):
            read_video(tmp_path / name)


def test_a_stream_of_unknown_size_is_compared_with_its_duration(tmp_path):
    whole = bytearray(encode(tmp_path / "a.mkv", ramp(), "libx264", "yuv420p").read_bytes())
    size = whole.index(b"\x18S\x80g") + 4
    whole[size : size + 8] = b"\x01" + 7 * b"\xff"  # unknown, as in what was written to a pipe
    (tmp_path / "a.mkv").write_bytes(whole)
    assert len(read_video(tmp_path / "a.mkv")) == 24
    (tmp_path / "a.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"ends after \d.\d\d of the 3.00 s that it states"):
        read_video(tmp_path / "a.mkv")


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
def test_sound_may_last_longer_than_the_frames(kind, tmp_path):
    with av.open(str(tmp_path / f"a.{kind}"), "w") as container:
        video, audio = container.add_stream("libx264", rate=8), container.add_stream("aac", rate=8000, layout="mono")
        video.width = video.height = 64
        for image in ramp(8):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(video.encode())
        for number in range(24):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 8000, 1024 * number
            container.mux(audio.encode(silence))
        container.mux(audio.encode())
    assert len(read_video(tmp_path / f"a.{kind}")) == 8


def test_frames_of_different_sizes_are_refused(tmp_path):
    sizes = [encode(tmp_path / f"{side}.h264", ramp(3, side), "libx264", "yuv420p") for side in (64, 48)]
    (tmp_path / "a.h264").write_bytes(b"".join(path.read_bytes() for path in sizes))
    with pytest.raises(ValueError, match="a.h264 cannot be decoded .its frames change from 64x64 to 48x48"):
        read_video(tmp_path / "a.h264")


def test_refuses_what_is_no_video(tmp_path):
    with pytest.raises(ValueError, match="missing.mp4 does not exist"):
        read_video(tmp_path / "missing.mp4")
    for name, content in {"empty.mp4": b"", "text.mp4": b"no video"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be decoded"):
            read_video(tmp_path / name)


def test_refuses_a_published_video_that_is_damaged(media):
    with pytest.raises(ValueError, match="corrupted.mp4 cannot be decoded"):
        read_video(media / "videos" / "corrupted.mp4")
