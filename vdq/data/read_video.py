"""Video files as frames, the same as the command `ffmpeg` gives: one reader for every kind of file.

PyAV decodes, and FFmpeg's own filters turn and convert frames, as in that command. decord gives the same bits of plain
video and serves the tests as a second opinion, but does not read here: it shows frames that an edit list hides,
converts 10 bits and odd sizes with halved colour otherwise, and fails on MPEG-TS and on frames 48 pixels wide.
"""

from collections.abc import Iterator
from fractions import Fraction
from os import PathLike
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from torch import Tensor

from vdq.errors import UserError

READER = f"PyAV {av.__version__}"  # decides pixels, so results name it
BROKEN = "it is damaged or breaks off"
MATROSKA, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"  # with which its header and all the rest begin
SHORT = 1.5  # frames by which whole files may end before the end that they state


def read_video(path: str | PathLike[str]) -> Tensor:
    """All frames of a video file as uint8 RGB [T,H,W,3]: those of its edit list, turned and mirrored as it says.

    Raises:
        UserError: if the file is missing, holds no video, is damaged, ends before the end that it states (MPEG-TS
            states none), changes its size, or is turned by other than quarter turns.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"video {path} does not exist; an existing file is allowed")
    try:
        with av.open(str(path)) as container:
            frames = np.stack(list(_frames(container)))
        if _breaks_off(path):
            raise UserError(BROKEN)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"video {path} cannot be decoded ({error}); a complete video file is allowed") from error
    return torch.from_numpy(frames)


def _frames(container: InputContainer) -> Iterator[np.ndarray]:
    """RGB frames [H,W,3] of the best video stream; of the other streams only the end counts."""
    stream = container.streams.best("video")
    if stream is None:
        raise UserError("it holds no video stream")
    stream.thread_type = "AUTO"
    convert, end, spans = _Converter(), 0.0, []
    for packet in container.demux():
        if packet.is_corrupt:
            raise UserError(BROKEN)
        begin = packet.dts if packet.pts is None else packet.pts
        if begin is not None:
            span = [float(time * packet.time_base) for time in (begin, begin + (packet.duration or 0))]
            end = max(end, span[1])
            spans += [span] if packet.stream == stream else []
        for frame in packet.decode() if packet.stream == stream else ():
            if frame.is_corrupt:
                raise UserError(BROKEN)
            yield convert(frame)
    if convert.shape is None:
        raise UserError("it holds no frame")
    if container.duration is not None and spans:
        stated = ((container.start_time or 0) + container.duration) / av.time_base
        frame_time = (max(last for _, last in spans) - min(first for first, _ in spans)) / len(spans)
        if stated - end > SHORT * frame_time:
            raise UserError(f"it ends after {end:.2f} of the {stated:.2f} s that it states")


class _Converter:
    """Decoded frames -> upright RGB [H,W,3], all of one size; raises UserError otherwise."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self._made_for: tuple | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        kind = (frame.width, frame.height, frame.format.name, _turns(frame))
        if kind != self._made_for:
            self._graph, self._made_for = _graph(*kind), kind
        self._graph.push(frame)
        image = self._graph.pull().to_ndarray()
        if self.shape not in (None, image.shape):
            raise UserError("its frames change from {}x{} to {}x{}".format(*self.shape[:2], *image.shape[:2]))
        self.shape = image.shape
        return image


def _graph(width: int, height: int, pixel_format: str, turns: tuple[str, ...]) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=pixel_format, time_base=Fraction(1, 1000))
    nodes = [graph.add(*turn.split("=")) for turn in (*turns, "format=rgb24", "buffersink")]
    graph.link_nodes(source, *nodes)
    graph.configure()
    return graph


def _turns(frame: av.VideoFrame) -> tuple[str, ...]:
    """The filters that the frame's display matrix asks for: x' = a x + c y, y' = b x + d y."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return ()
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    straight, quarter = abs(a) + abs(d), abs(b) + abs(c)
    if min(straight, quarter) > 0.01 * max(straight, quarter):
        raise UserError("it is turned by an angle that is no multiple of 90 degrees")
    across, down = (c, b) if quarter > straight else (a, d)
    turns = {"transpose=cclock_flip": quarter > straight, "hflip": across < 0, "vflip": down < 0}
    return tuple(turn for turn, wanted in turns.items() if wanted)


def _breaks_off(path: Path) -> bool:
    """Whether the end of a Matroska (WebM), AVI or GIF file is missing: FFmpeg reads them as far as they go."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(max(0, size - 16))
        tail = file.read()
    if head.startswith(MATROSKA):
        header, start = _matroska_size(head, len(MATROSKA))
        if head[start + header :].startswith(SEGMENT):
            segment, start = _matroska_size(head, start + header + len(SEGMENT))
            return size < start + segment
    if head.startswith(b"RIFF"):
        return size < 8 + int.from_bytes(head[4:8], "little")
    return head.startswith(b"GIF8") and not tail.rstrip(b"\0").endswith(b";")


def _matroska_size(data: bytes, start: int) -> tuple[int, int]:
    """An element's size, 0 if it was not known when it was written, and where its content starts.

    The number of leading zero bits says how many bytes follow the first.
    """
    length = 9 - data[start].bit_length()
    most = (1 << 7 * length) - 1
    value = int.from_bytes(data[start : start + length]) & most
    return value if value < most else 0, start + length
