"""Sounds as callers and clients give them: arrays, files of several formats, damaged files, and files with
false headers."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemlet.errors import GemletError, InvalidRequestError
from gemlet.media import sounds
from gemlet.media.containers import HEAD_BYTES, kind_of
from gemlet.media.sounds import read_sound
from support.extras import optional

soundfile = optional("soundfile")
needs_soundfile = pytest.mark.extra("audio")
RATE = 44100


def tone(rate: int = RATE, seconds: float = 0.5, channels: int = 1) -> NDArray[np.float32]:
    time = np.arange(int(rate * seconds)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 440 * time)
    return np.stack([wave * (c + 1) / channels for c in range(channels)], axis=1).astype(np.float32)


def encoded(samples: NDArray[np.float32], rate: int = RATE, **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **options})
    return file.getvalue()


def header(**changes: int) -> bytes:
    """The header of a WAV file of 16 bits, with the given sizes of its parts."""
    said = {"size": 4096, "channels": 1, "rate": 16000, "bits": 16, "data": 4000} | changes
    block = said["channels"] * said["bits"] // 8
    body = struct.pack(
        "<HHIIHH", 1, said["channels"], said["rate"], said["rate"] * block, block, said["bits"]
    )
    head = b"RIFF" + struct.pack("<I", said["size"]) + b"WAVEfmt " + struct.pack("<I", 16) + body
    return head + b"data" + struct.pack("<I", said["data"])


@needs_soundfile
@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"format": "WAV", "subtype": "FLOAT"}, 1e-6),
        ({"format": "WAV", "subtype": "PCM_16"}, 1e-4),
        ({"format": "WAV", "subtype": "PCM_24"}, 1e-6),
        ({"format": "FLAC"}, 1e-4),
        ({"format": "OGG", "subtype": "VORBIS"}, 0.05),
        ({"format": "MP3"}, 0.2),
        ({"format": "WAV", "subtype": "PCM_U8"}, 0.02),
        ({"format": "AIFF", "subtype": "PCM_24"}, 1e-6),
        ({"format": "AU", "subtype": "FLOAT"}, 1e-6),
        ({"format": "CAF", "subtype": "FLOAT"}, 1e-6),
        ({"format": "W64", "subtype": "FLOAT"}, 1e-6),
        ({"format": "RF64", "subtype": "FLOAT"}, 1e-6),
    ],
)
def test_a_file_gives_its_samples(options: dict[str, str], bound: float) -> None:
    samples = tone(channels=2)
    data = encoded(samples, **options)
    assert kind_of(data[:HEAD_BYTES]) == "audio"
    found = read_sound(data)
    expected = read_sound((samples, RATE))
    assert abs(found.seconds - 0.5) < 0.1
    count = min(len(found.samples), len(expected.samples))
    middle = slice(count // 4, count // 2)
    assert np.abs(found.samples[middle] - expected.samples[middle]).max() < bound


@needs_soundfile
def test_a_path_and_its_bytes(tmp_path: Path) -> None:
    data = encoded(tone())
    (tmp_path / "a.wav").write_bytes(data)
    for sound in (tmp_path / "a.wav", str(tmp_path / "a.wav"), bytearray(data)):
        np.testing.assert_array_equal(read_sound(sound).samples, read_sound(data).samples)


@needs_soundfile
def test_only_the_samples_that_are_heard_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tone(seconds=4)
    data = encoded(samples)
    whole, first = read_sound(data), read_sound(data, most=8000)
    assert first.seconds == whole.seconds == 4
    np.testing.assert_array_equal(first.samples, whole.samples[:8000])
    monkeypatch.setattr(sounds, "_MOST_DECODED", 2 * RATE)
    assert len(read_sound(data, most=8000).samples) == 8000
    with pytest.raises(InvalidRequestError, match="176400 samples, expected at most 88200"):
        read_sound(data)


@pytest.mark.parametrize(
    "samples",
    [
        np.full(1600, 16384, np.int16),
        np.full(1600, 0.5),
        np.full(1600, 0.5, np.float16),
        np.full((1600, 2), 0.5, np.float32),
        np.full((2, 1600), 0.5, np.float32).T,
        np.full(3200, 0.5, np.float32)[::2],
        [0.5] * 1600,
        {"array": [0.5] * 1600, "sampling_rate": 16000, "path": None},
        {"array": np.full(1600, 0.5), "sampling_rate": np.int64(16000)},
    ],
)
def test_arrays_of_several_kinds(samples: Any) -> None:
    found = read_sound(samples)
    np.testing.assert_array_equal(found.samples, np.full(1600, 0.5, np.float32))
    assert found.samples.dtype == np.float32


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (None, "got None, expected a path"),
        ("", "cannot be read"),
        ("no such file.wav", "cannot be read"),
        (b"", "the file is empty"),
        pytest.param(b"not a sound at all", "cannot be decoded", marks=needs_soundfile),
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros(5, np.int32), "expected int16"),
        (np.zeros(5, np.uint8), "array of uint8"),
        (np.zeros(5, complex), "array of complex128"),
        (np.zeros((2, 5000), np.float32), "the other way round"),
        (np.zeros((1, 1, 1), np.float32), "array of float32"),
        ((np.zeros(5), "44100"), "sampling rate is '44100'"),
        ((np.zeros(5), 44100.5), "sampling rate is 44100.5"),
        ((np.zeros(5), 10**12), "sampling rate is 1000000000000"),
        ((np.zeros(5), 10), "a rate of 10 samples"),
        (np.full(5, np.nan), "sample 0 is nan"),
        (np.full(5, 1e300), "sample 0 is inf"),
        (np.full(5, 30000.0), "divide integers"),
        ("data:audio/wav,abc", "data URL with base64"),
        ({"data": "AAAA", "path": "/etc/passwd"}, "expected"),
        ({"array": [0.5], "sampling_rate": 16000, "data": "AAAA"}, "expected"),
        ({"array": [0.5], "sampling_rate": "16000"}, "sampling rate is '16000'"),
        ([327, 650], "divide integers"),
        ((16000, np.zeros(5)), "expected an integer after the samples"),
        ({"format": "wav"}, "expected"),
    ],
)
def test_errors_about_sounds_name_the_sound(sound: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        read_sound(sound, "audio[3]")
    assert str(caught.value).startswith("audio[3]")


@needs_soundfile
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(), "no samples"),
        (header(data=0), "no samples"),
        (header(rate=1) + bytes(4000), "1 samples per second"),
        (header(rate=10**9) + bytes(4000), "1000000000 samples per second"),
        (header(channels=500, data=4000) + bytes(4000), "500 channels"),
        (header(channels=0) + bytes(4000), "cannot be decoded|0 channels"),
    ],
)
def test_wrong_headers_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read_sound(data)


@needs_soundfile
def test_a_file_that_says_that_it_is_longer() -> None:
    found = read_sound(header(size=2**32 - 1, data=2**32 - 1) + bytes(3200))  # streamed files have such sizes
    assert len(found.samples) == 1600


def test_too_large_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sounds, "MOST_FILE_BYTES", 1000)
    (tmp_path / "large.wav").write_bytes(bytes(1001))
    for sound in (tmp_path / "large.wav", bytes(1001), {"data": "A" * 1400}):
        with pytest.raises(InvalidRequestError, match="expected at most 1000"):
            read_sound(sound)


@needs_soundfile
@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
def test_damaged_files_are_errors_or_sounds(format: str) -> None:
    data = encoded(tone(8000, 0.1), 8000, format=format)
    random = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(0, min(len(damaged), 400), random.integers(1, 8)):
            damaged[place] = random.integers(256)
        if random.random() < 0.3:
            del damaged[int(random.integers(len(damaged))) :]
        try:
            found = read_sound(bytes(damaged), most=16000)
        except GemletError:
            continue
        assert np.isfinite(found.samples).all()
        assert 0 < len(found.samples) <= 16000


@pytest.mark.parametrize("samples", [[[0.0, 0.1], 44108], [[0, 1], [2]], ["a", 1.0], [10**400]])
def test_lists_that_are_not_samples_are_refused(samples: list[object]) -> None:
    with pytest.raises(InvalidRequestError, match="sound"):
        sounds.read_sound((samples, 44100), "sound")
