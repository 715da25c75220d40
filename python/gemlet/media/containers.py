"""Files that hold videos and their sound, opened by PyAV: :func:`opened`.

What a file says about itself is not trusted. PyAV never guesses the type of a file, because some of its
readers open other files. It may use only the readers and decoders that are named.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

from gemlet.base.patterns import late_pattern
from gemlet.base.text import reason_of
from gemlet.errors import InvalidRequestError, UnsupportedError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

__all__ = [
    "CONTAINERS",
    "HEAD_BYTES",
    "MOST_FILE_BYTES",
    "check_whole",
    "container_of",
    "kind_of",
    "opened",
    "packets_of",
]

MOST_FILE_BYTES = 1 << 30
MOST_PACKETS = 1 << 18
HEAD_BYTES = 12  # bytes that tell which container a file is
CONTAINERS = "MP4, QuickTime, WebM, Matroska or AVI"
_SOUND_BRANDS = (b"M4A ", b"M4B ", b"F4A ")  # brands of MP4 files with only sound
# WAV, AIFF, FLAC, Ogg, AU, CAF, W64, and MP3 with a tag or without.
_SOUND = late_pattern(
    rb"(?s)RIFF.{4}WAVE|RF64.{4}WAVE|FORM.{4}AIF[FC]|fLaC|OggS|\.snd|caff|riff|ID3|\xff[\xe0-\xff]"
)


def container_of(head: bytes) -> str | None:
    """The name of PyAV's reader for a file that begins so.

    >>> container_of(b"RIFF....AVI "), container_of(b"RIFF....WAVE")
    ('avi', None)
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    return "avi" if head.startswith(b"RIFF") and head[8:HEAD_BYTES] == b"AVI " else None


def kind_of(head: bytes) -> str:
    """The kind of a file that begins so: "audio", "video", or otherwise "image".

    >>> kind_of(b"RIFF....WAVE"), kind_of(b"RIFF....AVI "), kind_of(b"RIFF....WEBP")
    ('audio', 'video', 'image')
    """
    if container_of(head) is not None:
        is_sound = head[4:8] == b"ftyp" and head[8:HEAD_BYTES] in _SOUND_BRANDS
        return "audio" if is_sound else "video"
    return "audio" if _SOUND.match(head) else "image"


@contextlib.contextmanager
def opened(
    file: BinaryIO, name: str, decoders: Sequence[str], options: Mapping[str, str], instead: str
) -> Iterator[InputContainer]:
    """The container in ``file``, of which PyAV may use the ``decoders``. An error of PyAV in the block
    becomes an :class:`InvalidRequestError`. ``instead`` names what one can pass without PyAV."""
    try:
        import av
    except ImportError:
        raise UnsupportedError(
            f'{name}: PyAV, which decodes files, is not installed; use pip install "gemlet[video]", or pass '
            f"{instead}"
        ) from None
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not 0 < size <= MOST_FILE_BYTES:
        raise InvalidRequestError(
            f"{name}: the file has {size} bytes; expected at least 1 and at most {MOST_FILE_BYTES}"
        )
    container = container_of(file.read(HEAD_BYTES))
    file.seek(0)
    if container is None:
        raise InvalidRequestError(f"{name}: the file is not a video; expected {CONTAINERS}")
    try:
        given = {**options, "codec_whitelist": ",".join(decoders)}
        # Before version 19, av refuses metadata that is no UTF-8 unless it is told otherwise.
        more: Any = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        with av.open(file, mode="r", format=container, options=given, **more) as found:
            yield found
    except InvalidRequestError:
        raise
    except MemoryError:
        raise InvalidRequestError(f"{name}: there is no memory to decode it") from None
    except (av.FFmpegError, OSError, ValueError, ArithmeticError, RuntimeError, LookupError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise InvalidRequestError(f"{name}: the file is damaged or cut short: {reason_of(why)}") from None


def packets_of(
    container: InputContainer, name: str
) -> Iterator[tuple[Packet[Any], Fraction | None, Fraction | None]]:
    """Every packet that has data, and its begin and end in seconds if it says them. Decodes none.

    Raises :class:`InvalidRequestError` for a file of too many packets, or one that is cut within a frame.
    """
    for count, packet in enumerate(container.demux(), 1):
        if count > MOST_PACKETS:
            raise InvalidRequestError(f"{name}: the file has more than {MOST_PACKETS} packets; cut it")
        if not packet.size:
            continue
        if packet.is_corrupt:
            raise InvalidRequestError(f"{name}: the file is cut short within a frame")
        at = packet.dts if packet.pts is None else packet.pts
        if at is None or not packet.time_base:
            yield packet, None, None
        else:
            yield packet, at * packet.time_base, (at + (packet.duration or 0)) * packet.time_base


def check_whole(container: InputContainer, end: Fraction, name: str) -> None:
    """Raises :class:`InvalidRequestError` if the packets of a Matroska file end earlier than the file says;
    its reader does not notice a cut. ``end``: of the last packet, in seconds."""
    said = Fraction(container.duration or 0, 1_000_000)
    if "matroska" in container.format.name and end < said * Fraction(9, 10):
        raise InvalidRequestError(
            f"{name}: the file is cut short: it has {float(end):.3g} of {float(said):.3g} seconds"
        )
