"""Turns a sound in any form into its samples: :func:`read_sound`.

soundfile decodes audio files, and PyAV decodes the sound of video files (:mod:`.tracks`). The core does
everything after that. Files are not trusted: a file is checked before it is decoded, and only the part that
the model hears is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, BinaryIO

from gemlet import _core
from gemlet.base.arrays import NDArray, is_array, np
from gemlet.base.records import record
from gemlet.base.text import reason_of, show_argument
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.media.containers import HEAD_BYTES, container_of
from gemlet.media.containers import MOST_FILE_BYTES as MOST_VIDEO_BYTES
from gemlet.media.files import bytes_of, decode_base64, is_path, open_path, read_data_url
from gemlet.media.tracks import read_track, track_seconds

__all__ = ["MOST_FILE_BYTES", "Sound", "decoded_bytes", "read_sound", "read_sound_of_video"]

MOST_FILE_BYTES = 1 << 28
_MOST_DECODED = 1 << 28  # samples of all channels
_MARGIN = 1  # seconds that are decoded after the part that the model hears, because resampling needs them
_EXPECTED = (
    "expected a path, the bytes of a file, an open file, an array of samples at 16 kHz, or (samples, rate) "
    "with samples [n] or [n, channels] in float32 or int16"
)


@record(frozen=True)
class Sound:
    """A sound: float32 samples at 16 kHz in [-1, 1], and the length of the whole recording in seconds. The
    samples may be only the beginning of the recording."""

    samples: NDArray[np.float32]
    seconds: float


def read_sound(sound: object, name: str = "audio", *, most: int | None = None) -> Sound:
    """Returns ``sound`` as one channel at 16 kHz; with ``most``, only its first ``most`` samples. ``sound``
    is a path, the bytes of a file, an open file, a data URL, an array at 16 kHz, a pair of an array and its
    sampling rate, ``{"array": ..., "sampling_rate": ...}`` as in data sets of Hugging Face, or OpenAI's
    ``{"data": base64, "format": ...}``.

    Raises :class:`InvalidRequestError` if ``sound`` is not a sound, is damaged, empty or too long, and
    :class:`UnsupportedError` for a file if soundfile is not installed. ``name`` is the argument's name for
    messages.

    >>> read_sound((np.zeros(44100, np.int16), 44100)).samples.shape
    (16000,)
    >>> read_sound(7)
    Traceback (most recent call last):
        ...
    gemlet.errors.InvalidRequestError: audio: got 7, expected a path, the bytes of a file, ...
    """
    if is_array(sound):
        return _from_array(sound, _core.SOUND_RATE, name, most)
    if isinstance(sound, tuple) and len(sound) == 2:
        samples, rate = sound
        if isinstance(rate, np.integer):
            rate = int(rate)
        if isinstance(rate, float | np.floating) and float(rate).is_integer():
            rate = int(rate)
        if type(rate) is not int:
            raise InvalidRequestError(
                f"{name}: the sampling rate is {show_argument(rate)}, expected an integer after the samples"
            )
        return _from_array(samples, rate, name, most)
    if isinstance(sound, Mapping):
        if sound.keys() - {"path"} == {"array", "sampling_rate"}:
            return read_sound((sound["array"], sound["sampling_rate"]), name, most=most)
        return _from_file(_mapping_bytes(sound, name), name, most)
    data = bytes_of(sound, name, MOST_FILE_BYTES)
    if data is not None:
        return _from_file(data, name, most)
    if isinstance(sound, list):
        try:
            samples = np.asarray(sound, np.float32)
        except (ValueError, TypeError, OverflowError):
            samples = None
        if samples is not None:
            return _from_array(samples, _core.SOUND_RATE, name, most)
    raise InvalidRequestError(f"{name}: got {show_argument(sound)}, {_EXPECTED}")


def read_sound_of_video(video: object, name: str, *, most: int | None = None) -> Sound | None:
    """The sound of a video; with ``most``, only the first ``most`` samples. ``video`` is anything that
    :func:`~gemlet.media.videos.read_video` takes. The result is None for a pair of frames and rate, and for a
    file without sound.

    Raises the same errors as :func:`read_sound`.

    >>> read_sound_of_video(([np.zeros((2, 2, 3), np.uint8)], 8), "video") is None
    True
    """
    if is_path(video):
        with open_path(video, name) as file:
            return _from_container(file, name, most)
    data = bytes_of(video, name, MOST_VIDEO_BYTES)
    return None if data is None else _from_container(io.BytesIO(data), name, most)


def decoded_bytes(data: bytes) -> int:
    """The bytes of memory that decoding the sound file ``data`` takes, computed from the header; 0 if
    :func:`read_sound` refuses the file."""
    if container_of(data[:HEAD_BYTES]) is not None:
        try:
            seconds, rate = track_seconds(io.BytesIO(data), "")
        except (InvalidRequestError, UnsupportedError):
            return 0
        return int(4 * seconds * rate)
    try:
        import soundfile

        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return int(4 * max(0, file.frames) * max(1, file.channels))
    except Exception:  # soundfile or the file is broken
        return 0


def _mapping_bytes(sound: Mapping[Any, Any], name: str) -> bytes:
    data = sound.get("data")
    unknown = [key for key in sound if key not in ("data", "format")]
    if unknown or not isinstance(data, str):
        raise InvalidRequestError(
            f'{name}: got {show_argument(dict(sound))}, expected {{"data": base64, "format": "wav"}}'
        )
    read = read_data_url if data.startswith("data:") else decode_base64
    return read(data, name, MOST_FILE_BYTES)


def _from_array(samples: object, rate: int, name: str, most: int | None) -> Sound:
    array = samples
    if isinstance(samples, list | tuple):
        try:
            array = np.asarray(samples)
        except (ValueError, TypeError, OverflowError) as error:  # lists of different lengths, for example
            raise InvalidRequestError(f"{name}: {reason_of(error)}; {_EXPECTED}") from None
    if not isinstance(array, np.ndarray):
        raise InvalidRequestError(f"{name}: got {show_argument(samples)}, {_EXPECTED}")
    if array.ndim not in (1, 2) or array.dtype.kind not in "fi" or array.dtype.itemsize > 8:
        raise InvalidRequestError(f"{name}: got an array of {array.dtype} {list(array.shape)}, {_EXPECTED}")
    if array.dtype.kind == "i" and array.dtype.itemsize != 2:
        raise InvalidRequestError(
            f"{name}: got an array of {array.dtype}; expected int16, or float32 from -1 to 1"
        )
    if not 0 < rate < 1 << 31:
        raise InvalidRequestError(f"{name}: the sampling rate is {rate}, expected samples per second")
    frames = len(array)
    if array.ndim == 2 and array.shape[1] > 64 and frames <= 64:
        raise InvalidRequestError(
            f"{name}: samples of shape {list(array.shape)}; expected [n, channels], the other way round"
        )
    if most is not None:
        array = array[: most * rate // _core.SOUND_RATE + rate * _MARGIN]
    if array.size > _MOST_DECODED:
        raise InvalidRequestError(f"{name}: {array.size} samples, expected at most {_MOST_DECODED}")
    with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite, which the core refuses
        plain = np.ascontiguousarray(array, np.int16 if array.dtype.kind == "i" else np.float32)
    try:
        made = _core.mono(plain, rate=rate, most=(1 << 40) if most is None else most)
    except InvalidRequestError as problem:
        raise InvalidRequestError(f"{name}: {str(problem).removeprefix('sound: ')}") from None
    return Sound(made, frames / rate)


def _from_container(file: BinaryIO, name: str, most: int | None) -> Sound | None:
    track = read_track(file, name, None if most is None else most / _core.SOUND_RATE + _MARGIN)
    if track is None:
        return None
    return Sound(_from_array(track.samples, track.rate, name, most).samples, track.seconds)


def _from_file(data: bytes, name: str, most: int | None) -> Sound:
    if not data:
        raise InvalidRequestError(f"{name}: the file is empty")
    if container_of(data[:HEAD_BYTES]) is not None:
        found = _from_container(io.BytesIO(data), name, most)
        if found is None:
            raise InvalidRequestError(f"{name}: the file is a video without sound")
        return found
    try:
        import soundfile
    except (ImportError, OSError) as problem:
        raise UnsupportedError(
            f"{name}: decoding a file needs soundfile ({problem}); use pip install 'gemlet[audio]', or pass "
            "samples"
        ) from None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels, frames = file.samplerate, file.channels, file.frames
            if not 1000 <= rate <= 768000 or not 1 <= channels <= 64 or frames < 0:
                raise InvalidRequestError(
                    f"{name}: the file says {rate} samples per second, {channels} channels and {frames} "
                    "samples; expected 1000 to 768000, and 1 to 64 channels"
                )
            if frames > _core.MOST_SOUND_SECONDS * rate:
                raise InvalidRequestError(
                    f"{name}: {frames // rate} seconds, expected at most {_core.MOST_SOUND_SECONDS}; cut "
                    "it into pieces"
                )
            heard = frames
            if most is not None:
                heard = min(frames, most * rate // _core.SOUND_RATE + rate * _MARGIN)
            if heard * channels > _MOST_DECODED:
                raise InvalidRequestError(
                    f"{name}: {heard * channels} samples, expected at most {_MOST_DECODED}"
                )
            samples = file.read(heard, dtype="float32", always_2d=True)
    except InvalidRequestError:
        raise
    except MemoryError:
        raise InvalidRequestError(f"{name}: there is no memory to decode it") from None
    except Exception as problem:  # a damaged file may make soundfile raise anything
        why = getattr(
            problem, "error_string", problem
        )  # soundfile's whole message also shows the file object
        raise InvalidRequestError(f"{name}: the file cannot be decoded: {reason_of(why)}") from None
    if len(samples) == 0:
        raise InvalidRequestError(f"{name}: the file has no samples")
    if len(samples) < heard:
        raise InvalidRequestError(f"{name}: the file is cut short: it has {len(samples)} of {heard} samples")
    sound = _from_array(samples, rate, name, most)
    return Sound(sound.samples, frames / rate)
