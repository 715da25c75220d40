"""The caller's value becomes the bytes of a file in the same way for images, sounds and videos."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemlet.errors import InvalidRequestError
from gemlet.media.files import bytes_of
from gemlet.media.images import read_image
from gemlet.media.sounds import read_sound, read_sound_of_video
from gemlet.media.videos import read_video

DATA = bytes(range(256))


def url(text: str) -> str:
    return f"data:image/png;base64,{text}"


def test_every_form_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    monkeypatch.setenv("HOME", str(tmp_path))
    at_its_end = io.BytesIO()
    at_its_end.write(DATA)
    lines = base64.encodebytes(DATA).decode()
    assert "\n" in lines.strip()
    with (
        path.open("rb") as opened,
        path.open("rb", buffering=0) as unbuffered,
        tempfile.SpooledTemporaryFile() as spooled,
    ):
        spooled.write(DATA)
        for form in (
            *(path, str(path), "~/file", DATA, bytearray(DATA), memoryview(DATA)),
            *(io.BytesIO(DATA), at_its_end, opened, unbuffered, opened, spooled),
            *(url(base64.b64encode(DATA).decode()), url(lines), url(f" {lines.strip()}\r\n")),
        ):
            assert bytes_of(form, "it", 256) == DATA


class Stream(io.RawIOBase):
    """A file that cannot seek, such as the answer of a server."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(size)


def test_a_stream_is_read() -> None:
    assert bytes_of(Stream(DATA), "it", 256) == DATA


def closed() -> io.BytesIO:
    file = io.BytesIO(DATA)
    file.close()
    return file


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (io.StringIO("text"), 'gives str, expected bytes; open a file with the mode "rb"'),
        (closed(), "closed file"),
        (io.BytesIO(DATA + b"0"), "257 bytes; expected at most 256"),
        (Stream(DATA + b"0"), "257 bytes; expected at most 256"),
        (memoryview(DATA + bytes(4)).cast("I"), "260 bytes; expected at most 256"),
        (url("A" * 1000), "bytes; expected at most 256"),
        (url("A" * 350 + "=="), "bytes; expected at most 256"),
        (url("\u00e9"), "base64 is damaged"),
        (url("A"), "base64 is damaged"),
        (url("AAA_"), "base64 is damaged"),
        ("data:image/svg+xml,<svg/>", "expected a data URL with base64"),
        ("https://example.com/cat.png", "gemlet fetches nothing; download it"),
        ("file:///etc/passwd", "gemlet fetches nothing"),
    ],
)
def test_media_that_cannot_be_read_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        bytes_of(given, "it[2]", 256)
    assert str(caught.value).startswith("it[2]: ")
    assert str(caught.value).count("it[2]") == 1


def read_frames(given: object, name: str) -> object:
    return read_video(given, name, len, len)


@pytest.mark.parametrize("read", [read_image, read_sound, read_frames, read_sound_of_video])
@pytest.mark.parametrize(
    "given",
    ["https://example.com/a", "no such file", io.StringIO("text"), "data:,x"],
)
def test_every_reader_names_the_medium_once(read: Callable[[object, str], object], given: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(given, "it[2]")
    assert str(caught.value).count("it[2]") == 1
