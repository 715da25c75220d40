"""Reading videos: the frames, their order and orientation, and files that are broken or have false
headers."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from gemlet import InvalidRequestError, UnsupportedError
from gemlet.media import containers, videos
from gemlet.media.videos import read_video
from support.videos import clip, level_of, turned, with_empty_packets

pytestmark = pytest.mark.extra("video")


def read(video: Any) -> tuple[list[Any], list[float]]:
    return read_video(video, "video", lambda levels: levels, lambda levels: levels)


def seen_of(levels: Any) -> int:
    """The number of a frame of ``clip``, by the brightness of its middle."""
    middle = float(levels[levels.shape[0] // 2, levels.shape[1] // 2].mean())
    return round((middle - level_of(0)) / (level_of(1) - level_of(0)))


@pytest.fixture(scope="module")
def short() -> bytes:
    return clip()


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "mpeg4"),
        ("mp4", "libx264"),
        ("mov", "mjpeg"),
        ("webm", "libvpx-vp9"),
        ("matroska", "libx264"),
        ("avi", "mpeg4"),
    ],
)
def test_32_frames_at_equal_distances_are_seen(container: str, codec: str) -> None:
    data = clip(50, container=container, codec=codec)
    assert containers.kind_of(data[: containers.HEAD_BYTES]) == "video"
    frames, seconds = read(data)
    expected = [i * 50 // 32 for i in range(32)]
    assert [seen_of(one) for one in frames] == expected
    assert seconds == pytest.approx([i / 25 for i in expected])
    assert {one.shape for one in frames} == {(48, 64, 3)}


def test_a_short_video_is_seen_in_all_its_frames() -> None:
    frames, seconds = read(clip(5, rate=2, codec="libx264"))
    assert [seen_of(one) for one in frames] == list(range(5))
    assert seconds == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_every_form_gives_the_same_frames(short: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(short)
    url = "data:video/mp4;base64," + base64.b64encode(short).decode()
    expected, seconds = read(short)
    for form in (bytearray(short), memoryview(short), path, str(path), url):
        found, times = read(form)
        np.testing.assert_array_equal(found, expected)
        assert times == seconds
    pair, _ = read((expected, 25))
    np.testing.assert_array_equal(pair, expected)


@pytest.mark.parametrize("quarters", range(4))
def test_frames_stand_upright(short: bytes, quarters: int) -> None:
    frames, _ = read(turned(short, quarters))
    plain, _ = read(short)
    for frame, other in zip(frames, plain, strict=True):
        np.testing.assert_array_equal(frame, np.rot90(other, -quarters))


def test_a_track_of_sound_does_not_change_the_frames() -> None:
    frames, _ = read(clip(40, sound=True))
    assert [seen_of(one) for one in frames] == [i * 40 // 32 for i in range(32)]


def test_names_in_other_encodings_do_not_matter(short: bytes) -> None:
    data = short.replace(b"VideoHandler", b"VideoHandle\xe9")
    assert data != short
    np.testing.assert_array_equal(read(data)[0], read(short)[0])


def test_packets_without_a_frame_do_not_count() -> None:
    frames, _ = read(with_empty_packets(40, 4))
    found = [seen_of(one) for one in frames]
    assert len(found) == 32
    assert found == sorted(set(found))
    assert found[-1] >= 38


def test_one_frame_is_in_memory_at_a_time(short: bytes) -> None:
    """Only the resized frame that the model sees is kept, not the whole frame."""
    kept, _ = read_video(short, "video", lambda levels: levels, lambda levels: levels[0, 0].copy())
    assert [one.nbytes for one in kept] == [3] * 32


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "mpeg4"), ("matroska", "libx264"), ("avi", "mpeg4")]
)
@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.6, 0.85])
def test_a_video_that_is_cut_short_is_refused(container: str, codec: str, part: float) -> None:
    data = clip(container=container, codec=codec)
    with pytest.raises(InvalidRequestError, match=r"^video: (the file|frame|no frame)"):
        read(data[: int(part * len(data))])


def test_files_that_are_not_videos_are_refused() -> None:
    message = "the file is not a video; expected MP4, QuickTime, WebM, Matroska or AVI"
    for data in (b"x" * 100, b"#EXTM3U\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"):
        with pytest.raises(InvalidRequestError, match=message):
            read(data)
    for no_video in (7, None, [1, 2, 3], ("ab", 3), ([], 3)):
        with pytest.raises(InvalidRequestError, match=r"^video: got"):
            read(no_video)


def test_a_file_with_sound_alone_is_refused() -> None:
    with pytest.raises(
        InvalidRequestError, match="the file has no pictures; if it has sound, pass it as audio"
    ):
        read(clip(sound=True, picture=False))


def test_other_codecs_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="the video is in 'ffv1'; expected one of h264"):
        read(clip(2, container="matroska", codec="ffv1"))


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MOST_PIXELS", 1000, "no frames of at most 1000 pixels"),
        ("MOST_SECONDS", 1, "1 seconds, expected at most 1"),
        ("MOST_DECODED", 48 * 64 * 49 - 1, "pixels to decode, expected at most"),
        ("MOST_PACKETS", 49, "more than 49 packets"),
        ("MOST_FILE_BYTES", 100, "expected at least 1 and at most 100"),
    ],
)
def test_limits_hold_before_anything_is_decoded(short: bytes, limit: str, value: int, message: str) -> None:
    with (
        mock.patch.object(containers if hasattr(containers, limit) else videos, limit, value),
        mock.patch.object(videos, "_see", side_effect=AssertionError("decodes")),
        pytest.raises(InvalidRequestError, match=message),
    ):
        read(short)


def test_false_sizes_in_the_header_are_ignored(short: bytes) -> None:
    """The header of the track has a small size, but the frames are large."""
    at = short.index(b"mp4v") + 28
    lying = short[:at] + (8).to_bytes(2, "big") * 2 + short[at + 4 :]
    with mock.patch.object(videos, "MOST_PIXELS", 48 * 64 - 1), pytest.raises(InvalidRequestError):
        read(lying)


def test_a_false_frame_rate_is_ignored() -> None:
    """The header says 1 frame a second, but the timestamps say 25."""
    data = clip(container="matroska")
    duration = b"\x23\xe3\x83"  # DefaultDuration, in nanoseconds
    at = data.index(duration) + 3
    length = data[at] & 0x7F
    lying = data[: at + 1] + (10**9).to_bytes(length, "big") + data[at + 1 + length :]
    _, seconds = read(lying)
    assert seconds == pytest.approx([i * 50 // 32 / 25 for i in range(32)])


def test_damage_is_a_typed_error_or_none(short: bytes) -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(short)
        for at in random.integers(0, len(data), 20):
            data[at] = random.integers(0, 256)
        try:
            frames, _ = read(bytes(data))
        except InvalidRequestError:
            continue
        assert all(one.dtype == np.uint8 and one.ndim == 3 for one in frames)


def test_without_pyav_a_file_names_the_extra(short: bytes) -> None:
    with mock.patch.dict(sys.modules, {"av": None}):
        with pytest.raises(UnsupportedError, match=r'pip install "gemlet\[video\]"'):
            read(short)
        frames, _ = read((np.zeros((3, 4, 4, 3), np.uint8), 1))
    assert len(frames) == 3


def test_the_memory_for_decoding_a_file_is_estimated(short: bytes) -> None:
    assert videos.decoded_bytes(short) >= 4 * 48 * 64
    assert videos.decoded_bytes(short[:100]) == videos.decoded_bytes(b"no video at all") == 0
