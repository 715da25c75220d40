"""Opens files of videos and their sound with PyAV: :func:`opened`.

The files are not trusted. PyAV never guesses the type of a file, because some of PyAV's readers open other
files. PyAV may use only the reader and the decoders that are named here.
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
HEAD_BYTES = 12  # bytes at the beginning of a file that show which container it is
CONTAINERS = "MP4, QuickTime, WebM, Matroska or AVI"
_SOUND_BRANDS = (b"M4A ", b"M4B ", b"F4A ")  # brands of MP4 files with only sound
# WAV, AIFF, FLAC, Ogg, AU, CAF, W64, and MP3 with a tag or without.
_SOUND = late_pattern(
    rb"(?s)RIFF.{4}WAVE|RF64.{4}WAVE|FORM.{4}AIF[FC]|fLaC|OggS|\.snd|caff|riff|ID3|\xff[\xe0-\xff]"
)


def container_of(head: bytes) -> str | None:
    """The name of PyAV's reader for a file that begins with ``head``; None if the file is no container.

    >>> container_of(b"RIFF....AVI "), container_of(b"RIFF....WAVE")
    ('avi', None)
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    return "avi" if head.startswith(b"RIFF") and head[8:HEAD_BYTES] == b"AVI " else None


def kind_of(head: bytes) -> str:
    """The kind of a file that begins with ``head``: "audio", "video", or otherwise "image".

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
    """Opens the container in ``file``. PyAV may use only the ``decoders``. An error of PyAV in the block
    becomes an :class:`InvalidRequestError`. ``instead`` says, for the error without PyAV, what a caller can
    pass instead."""
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
        # Before version 19, PyAV by default refuses a file whose metadata are not UTF-8.
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
    """Yields (packet, begin, end) for every packet that has data. The times are in seconds, or None if the
    packet does not have them. Nothing is decoded.

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
    """Raises :class:`InvalidRequestError` if the packets of a Matroska file end earlier than the file says,
    because PyAV's reader for Matroska does not notice that a file is cut short. ``end`` is the end of the
    last packet in seconds."""
    said = Fraction(container.duration or 0, 1_000_000)
    if "matroska" in container.format.name and end < said * Fraction(9, 10):
        raise InvalidRequestError(
            f"{name}: the file is cut short: it has {float(end):.3g} of {float(said):.3g} seconds"
        )
