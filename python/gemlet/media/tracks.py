"""Reads the sound in a container such as MP4 or WebM: :func:`read_track`.

PyAV decodes the sound. All packets are counted before any packet is decoded, and only the part that the model
hears is decoded.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

from gemlet import _core
from gemlet.base.arrays import NDArray, np
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError
from gemlet.media.containers import check_whole, opened, packets_of

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

__all__ = ["Track", "read_track", "track_seconds"]

_CODECS = ("aac", "mp3", "opus", "vorbis", "flac", "alac", "ac3", "eac3", "amrnb", "pcm_s16le", "pcm_s16be")
# FFmpeg's names of the decoders for these codecs.
_DECODERS = (*_CODECS, "mp3float", "libopus", "libvorbis", "pcm_s24le", "pcm_f32le", "pcm_u8", "aac_latm")
_MARGIN = 1  # seconds by which a track may be longer than its packets say


@record(frozen=True)
class Track:
    """Samples of one channel, float32, at ``rate`` samples per second, and the length of the whole track in
    seconds."""

    samples: NDArray[np.float32]
    rate: int
    seconds: float


def read_track(file: BinaryIO, name: str, most_seconds: float | None) -> Track | None:
    """The first sound track in the container ``file``, as the mean of its channels; with ``most_seconds``, at
    most this many seconds from the beginning. None if the container has no sound.

    Raises :class:`InvalidRequestError` for a sound that is damaged, empty or too long, and
    :class:`UnsupportedError` if PyAV is not installed. ``name`` is the argument's name for messages.
    """
    with opened(file, name, _DECODERS, {}, "samples") as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        codec = getattr(stream.codec_context, "name", "unknown")
        if codec not in _DECODERS:
            raise InvalidRequestError(
                f"{name}: the sound is in {show_argument(codec)}; expected one of {', '.join(_CODECS)}"
            )
        seconds = _scanned(container, stream, name)
    # The file is opened again, because newer versions of FFmpeg drop the first AAC frame after seeking to the
    # beginning.
    with opened(file, name, _DECODERS, {}, "samples") as container:
        samples, rate = _decoded(container, container.streams.audio[0], name, seconds, most_seconds)
        return Track(samples, rate, seconds)


def track_seconds(file: BinaryIO, name: str) -> tuple[float, int]:
    """The length in seconds and the sampling rate of the first sound track in ``file``, without decoding it;
    zeros if there is no sound."""
    with opened(file, name, _DECODERS, {}, "samples") as container:
        if not container.streams.audio:
            return 0.0, 0
        stream = container.streams.audio[0]
        return _scanned(container, stream, name), int(stream.rate or 0)


def _scanned(container: InputContainer, stream: AudioStream, name: str) -> float:
    """The length of the track ``stream`` in seconds, from the times of its packets. Nothing is decoded."""
    first: Fraction | None = None
    last = whole = Fraction(0)  # the end of the sound, and the end of all packets
    for packet, begin, end in packets_of(container, name):
        if begin is None or end is None:
            continue
        whole = max(whole, end)
        if packet.stream_index == stream.index:
            first = begin if first is None else min(first, begin)
            last = max(last, end)
    check_whole(container, whole, name)
    if first is None:
        raise InvalidRequestError(f"{name}: the file has no samples, or does not say when they are heard")
    seconds = last - first
    if seconds > _core.MOST_SOUND_SECONDS:
        raise InvalidRequestError(
            f"{name}: {int(seconds)} seconds, expected at most {_core.MOST_SOUND_SECONDS}; cut it into pieces"
        )
    return float(max(seconds, Fraction(0)))


def _decoded(
    container: InputContainer, stream: AudioStream, name: str, seconds: float, most_seconds: float | None
) -> tuple[NDArray[np.float32], int]:
    parts: list[NDArray[np.float32]] = []
    rate = count = 0
    for frame in container.decode(stream):
        rate = rate or frame.sample_rate
        if frame.sample_rate != rate:
            raise InvalidRequestError(
                f"{name}: its sound changes from {rate} to {frame.sample_rate} samples per second"
            )
        parts.append(_mono(frame, name))
        count += len(parts[-1])
        if most_seconds is not None and count >= most_seconds * rate:
            break
        if count > (seconds + _MARGIN) * rate:
            raise InvalidRequestError(
                f"{name}: its sound is longer than the {seconds:.1f} seconds that it says"
            )
    if count == 0:
        raise InvalidRequestError(f"{name}: the file has no samples")
    return np.concatenate(parts), rate


def _mono(frame: AudioFrame, name: str) -> NDArray[np.float32]:
    channels = frame.layout.nb_channels
    values: Any = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    if channels < 1 or values.shape[0] != channels:
        raise InvalidRequestError(f"{name}: its sound has {channels} channels in {values.shape[0]} rows")
    if values.dtype.kind == "f":
        return np.asarray(values.mean(axis=0, dtype=np.float64), np.float32)
    middle = 128 if values.dtype == np.uint8 else 0
    whole = 128 if values.dtype == np.uint8 else -float(np.iinfo(values.dtype).min)
    return np.asarray((values.mean(axis=0, dtype=np.float64) - middle) / whole, np.float32)
