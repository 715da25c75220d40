"""Turns a video in any form into the frames that a model sees: :func:`read_video`.

PyAV only decodes files; the core does everything after that. Files are not trusted: all packets are counted
before any packet is decoded, only common containers and codecs are read, and only one decoded frame is in
memory at a time.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from gemlet.base.arrays import np
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.media.containers import MOST_FILE_BYTES, check_whole, opened, packets_of
from gemlet.media.files import bytes_of, is_path, open_path
from gemlet.media.images import Levels, read_image

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["MOST_FRAMES", "decoded_bytes", "evenly", "one_a_second", "read_video"]

MOST_FRAMES = 32  # frames that the model sees
MOST_PIXELS = 1 << 24  # pixels of a frame
MOST_SECONDS = 3600
MOST_DECODED = 1 << 34  # pixels of all frames up to the last frame that the model sees
_RATES = (1e-3, 1e4)  # frames per second
_KEPT_BYTES = MOST_FRAMES * 3 * 768 * 768  # bytes of all frames that the model sees, resized for the tower
_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg")
_DECODERS = (*_CODECS, "libdav1d", "libvpx", "libvpx-vp9")  # FFmpeg's names of the decoders for these codecs
_EXPECTED = "expected a path, the bytes of a file, or a pair of frames and frames per second"
_Seen = TypeVar("_Seen")
Choose = Callable[
    [int, float], list[int]
]  # (number of frames, frames per second) -> indices of frames to see


def evenly(total: int, rate: float) -> list[int]:
    """The indices of at most 32 frames at equal distances.

    >>> evenly(3, 24.0), evenly(80, 24.0)[:5]
    ([0, 1, 2], [0, 2, 5, 7, 10])
    """
    count = min(total, MOST_FRAMES)
    return [i * total // count for i in range(count)]


def one_a_second(total: int, rate: float) -> list[int]:
    """The indices of one frame for each second. Of a video of more than 32 seconds, 32 seconds at equal
    distances are taken.

    >>> one_a_second(100, 30.0), len(one_a_second(9000, 30.0))
    ([0, 30, 60], 32)
    """
    count = max(1, int(total / rate))
    seconds = range(count) if count <= MOST_FRAMES else np.linspace(0, count - 1, MOST_FRAMES, dtype=int)
    return [min(total - 1, int(second * rate)) for second in seconds]


def read_video(
    video: object,
    name: str,
    see: Callable[[Levels], _Seen],
    see_decoded: Callable[[Levels], _Seen],
    choose: Choose = evenly,
) -> tuple[list[_Seen], list[float]]:
    """Reads the frames of ``video`` that ``choose`` selects. ``video`` is a path, the bytes of a file, an
    open file, a data URL, or a pair of a list of frames (as for :func:`read_image`) and the frames per
    second.

    Each selected frame is passed to ``see`` if ``video`` is a pair, and to ``see_decoded`` if it is a file.
    Returns the results of these calls, and the time of each frame in seconds.

    Raises :class:`InvalidRequestError` if ``video`` is not a video, is damaged, cut short or too large, and
    :class:`UnsupportedError` for a file if PyAV is not installed. ``name`` is the argument's name for
    messages.

    >>> frames = [np.full((2, 2, 3), i, np.uint8) for i in range(64)]
    >>> brightest = lambda levels: int(levels.max())
    >>> seen, seconds = read_video((frames, 8), "video", brightest, brightest)
    >>> seen[:3], seconds[:3]
    ([0, 2, 4], [0.0, 0.25, 0.5])
    """
    if is_path(video):
        with open_path(video, name) as file:
            return _from_file(file, name, see_decoded, choose)
    data = bytes_of(video, name, MOST_FILE_BYTES)
    if data is not None:
        return _from_file(io.BytesIO(data), name, see_decoded, choose)
    if not isinstance(video, Sequence) or len(video) != 2:
        raise InvalidRequestError(f"{name}: got {show_argument(video)}, {_EXPECTED}")
    frames, given = video
    try:
        rate = float(given) if isinstance(given, Real) and not isinstance(given, bool) else 0.0
    except OverflowError:
        rate = 0.0
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InvalidRequestError(
            f"{name}: got {show_argument(given)} frames per second, expected a number from 0.001 to 10000"
        )
    total = len(frames) if isinstance(frames, Sequence | np.ndarray) else 0
    if total < 1 or isinstance(frames, str | bytes):
        raise InvalidRequestError(f"{name}: got {show_argument(frames)}, expected a list of frames")
    indices = choose(total, rate)
    return [see(read_image(frames[i], f"{name}: frame {i}")) for i in indices], [i / rate for i in indices]


def decoded_bytes(data: bytes) -> int:
    """The bytes of memory that decoding the video file ``data`` takes, computed from the header; 0 if
    :func:`read_video` refuses the file."""
    try:
        with _opened(io.BytesIO(data), "") as (_, stream):
            return 4 * stream.width * stream.height + _KEPT_BYTES
    except (InvalidRequestError, UnsupportedError):
        return 0


@record(frozen=True)
class _Scan:
    """The number of frames in a file and the frames per second, found from the packets."""

    frames: int
    rate: float


def _from_file(
    file: BinaryIO, name: str, see: Callable[[Levels], _Seen], choose: Choose
) -> tuple[list[_Seen], list[float]]:
    with _opened(file, name) as (container, stream):
        scan = _scan(container, stream, name, choose)
        indices = choose(scan.frames, scan.rate)
        seen, total = _see(container, stream, indices, name, see)
        if len(seen) < len(indices):  # in VP8 and AVI, some packets contain no frame
            if total == 0:
                raise InvalidRequestError(f"{name}: no frame of the file can be decoded")
            indices = choose(total, scan.rate)
            seen, _ = _see(container, stream, indices, name, see)
    return seen, [i / scan.rate for i in indices]


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens the file and yields its container and video stream. An error of PyAV in the block becomes an
    :class:`InvalidRequestError`."""
    options = {"max_pixels": str(MOST_PIXELS)}
    with opened(file, name, _DECODERS, options, "frames and frames per second") as container:
        yield container, _stream(container, name)


def _stream(container: InputContainer, name: str) -> VideoStream:
    pictures = [
        one
        for one in container.streams.video
        if not one.disposition & type(one.disposition).attached_pic  # not the cover picture of a sound file
    ]
    if not pictures:
        raise InvalidRequestError(f"{name}: the file has no pictures; if it has sound, pass it as audio")
    stream = pictures[0]
    codec = getattr(stream.codec_context, "name", "unknown")
    if codec not in _DECODERS:
        raise InvalidRequestError(
            f"{name}: the video is in {show_argument(codec)}; expected one of {', '.join(_CODECS)}"
        )
    _check_size(name, stream.height, stream.width)
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    return stream


def _check_size(name: str, height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        raise InvalidRequestError(
            f"{name}: a frame has {width} x {height} pixels; expected at most {MOST_PIXELS}"
        )
    if height < 1 or width < 1:  # PyAV reports this size if max_pixels forbids the real size
        raise InvalidRequestError(f"{name}: the file has no frames of at most {MOST_PIXELS} pixels")


def _scan(container: InputContainer, stream: VideoStream, name: str, choose: Choose) -> _Scan:
    """Counts the frames by reading all packets. Nothing is decoded."""
    frames = packets = 0
    begins: list[Fraction] = []
    last = Fraction(0)  # the end of all packets
    for packet, begin, end in packets_of(container, name):
        last = max(last, end or last)
        if packet.stream_index != stream.index:
            continue
        packets += 1
        if packet.is_discard:
            continue
        frames += 1
        if begin is not None:
            begins.append(begin)
    if frames == 0:
        raise InvalidRequestError(f"{name}: the file has no frames")
    _check_complete(container, stream, packets, last, name)
    seconds = max(begins) - min(begins) if begins else Fraction(0)
    if seconds > MOST_SECONDS:
        raise InvalidRequestError(
            f"{name}: {int(seconds)} seconds, expected at most {MOST_SECONDS}; cut it into pieces"
        )
    rate = _rate(stream, frames, seconds)
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InvalidRequestError(
            f"{name}: {show_argument(rate)} frames per second, expected a number from 0.001 to 10000"
        )
    decoded = (choose(frames, rate)[-1] + 1) * stream.width * stream.height
    if decoded > MOST_DECODED:
        raise InvalidRequestError(
            f"{name}: {frames} frames of {stream.width} x {stream.height} pixels are {decoded} pixels to "
            f"decode, expected at most {MOST_DECODED}; make it shorter or smaller, or pass frames and frames "
            "per second"
        )
    return _Scan(frames, rate)


def _check_complete(
    container: InputContainer, stream: VideoStream, packets: int, end: Fraction, name: str
) -> None:
    """Raises an error if an AVI or Matroska file is cut short, because their readers do not notice it. The
    reader for MP4 does."""
    kind = container.format.name
    if kind == "avi" and packets < stream.frames:
        raise InvalidRequestError(
            f"{name}: the file is cut short: it has {packets} of {stream.frames} frames"
        )
    check_whole(container, end, name)


def _rate(stream: VideoStream, frames: int, seconds: Fraction) -> float:
    """Frames per second. The rate in the file's header is used if it agrees with the timestamps; otherwise
    the rate follows from the timestamps. ``seconds`` is the time from the first frame to the last."""
    said = float(stream.average_rate or 24)
    found = float((frames - 1) / seconds) if seconds > 0 else said
    return said if abs(said - found) <= 0.02 * found else found


def _see(
    container: InputContainer,
    stream: VideoStream,
    wanted: Sequence[int],
    name: str,
    see: Callable[[Levels], _Seen],
) -> tuple[list[_Seen], int]:
    """Returns the results of ``see`` for the ``wanted`` frames, and the index at which decoding ended."""
    seen: list[_Seen] = []
    count = 0
    container.seek(0, backward=True)
    for frame in container.decode(stream):
        _check_size(name, frame.height, frame.width)
        if count == wanted[len(seen)]:
            seen += [see(_upright(frame, name, count))] * wanted.count(count)
            if len(seen) == len(wanted):
                break
        count += 1
    return seen, count


def _upright(frame: VideoFrame, name: str, index: int) -> Levels:
    if frame.is_corrupt:
        raise InvalidRequestError(f"{name}: frame {index} is damaged")
    levels: Any = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(levels, round(frame.rotation / 90)), np.uint8)
