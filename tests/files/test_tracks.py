"""The sound in video files: the decoded samples and channels, and refused files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from gemlet.errors import InvalidRequestError
from gemlet.media import containers, tracks
from gemlet.media.sounds import decoded_bytes, read_sound, read_sound_of_video
from support.videos import clip, recording

pytestmark = pytest.mark.extra("video")
RATE = 48000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize(
    ("container", "codec", "bound"),
    [
        ("mp4", "aac", 0.1),
        ("mov", "pcm_s16le", 1e-4),
        ("matroska", "flac", 1e-4),
        ("avi", "pcm_s16le", 1e-4),
        ("webm", "libopus", 0.05),
        ("mp4", "libmp3lame", 0.05),
        ("mp4", "alac", 1e-4),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_track_gives_its_samples(container: str, codec: str, bound: float, channels: int) -> None:
    samples = np.stack([TONE, 0.5 * TONE][:channels], axis=1)
    data = recording(samples, RATE, container=container, codec=codec)
    found, expected = read_sound(data), read_sound((samples, RATE))
    assert abs(found.seconds - 1) < 0.1
    assert decoded_bytes(data) == pytest.approx(4 * RATE, rel=0.1)
    if bound < 1e-3:
        assert np.abs(found.samples - expected.samples).max() < bound
    # Other codecs begin some milliseconds earlier or later.
    at = np.arange(4000, 12000) * (2 * np.pi * 440 / 16000)
    waves = np.stack([np.sin(at), np.cos(at)], axis=1)
    share, *_ = np.linalg.lstsq(waves, found.samples[4000:12000], rcond=None)
    assert np.hypot(*share) == pytest.approx(float(samples.mean(axis=1).max()), rel=0.05)
    assert np.abs(found.samples[4000:12000] - waves @ share).max() < bound


def test_only_the_samples_that_are_heard_are_decoded() -> None:
    data = recording(TONE[:, None], RATE, container="mov", codec="pcm_s16le")
    whole, first = read_sound(data), read_sound(data, most=8000)
    assert first.seconds == whole.seconds
    np.testing.assert_array_equal(first.samples, whole.samples[:8000])


def test_the_sound_of_a_video() -> None:
    video = clip(5, sound=True)
    found = read_sound_of_video(video, "video")
    assert found is not None
    assert abs(found.seconds - 1) < 0.1
    np.testing.assert_array_equal(found.samples, read_sound(io.BytesIO(video)).samples)
    assert read_sound_of_video(clip(2), "video") is None
    with pytest.raises(InvalidRequestError, match="audio: the file is a video without sound"):
        read_sound(clip(2))
    assert decoded_bytes(clip(2)) == 0


def test_damage_is_a_typed_error_or_none() -> None:
    data = recording(TONE[:8000, None], RATE, container="mp4", codec="aac")
    random = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(0, len(damaged), random.integers(1, 8)):
            damaged[place] = random.integers(256)
        if random.random() < 0.3:
            del damaged[int(random.integers(len(damaged))) :]
        try:
            found = read_sound(bytes(damaged), most=16000)
        except InvalidRequestError:
            continue
        assert np.isfinite(found.samples).all()


def test_a_file_that_is_cut_short_is_refused() -> None:
    for container, codec in (("matroska", "flac"), ("webm", "libopus"), ("mp4", "aac")):
        data = recording(TONE[:, None], RATE, container=container, codec=codec)
        with pytest.raises(InvalidRequestError, match="cut short"):
            read_sound(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [("MOST_PACKETS", 3, "more than 3 packets"), ("_DECODERS", ("mp3",), "sound is in|cut short")],
)
def test_limits(limit: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = recording(TONE[:, None], RATE, container="mp4", codec="aac")
    monkeypatch.setattr(containers if hasattr(containers, limit) else tracks, limit, value)
    with pytest.raises(InvalidRequestError, match=message):
        read_sound(data)


def test_a_track_that_says_that_it_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    data = recording(np.tile(TONE, 4)[:, None], RATE, container="mov", codec="pcm_s16le")
    monkeypatch.setattr(tracks, "_scanned", lambda *_: 1.0)
    with pytest.raises(InvalidRequestError, match=r"longer than the 1\.0 seconds"):
        read_sound(data)
