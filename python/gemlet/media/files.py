"""Reads the file of an image, a sound or a video in the forms that a caller may pass: :func:`bytes_of`."""

from __future__ import annotations

import binascii
import errno
import os
from typing import BinaryIO

from gemlet.base.files import open_regular, own_path
from gemlet.base.late import base64
from gemlet.base.patterns import late_pattern
from gemlet.base.text import reason_of, show_argument
from gemlet.errors import InvalidRequestError

__all__ = ["bytes_of", "decode_base64", "is_path", "open_path", "read_data_url"]

_ADDRESS = late_pattern(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SHOWN = 512  # characters of a path that an error message shows
_BLANKS = b" \t\r\n"  # characters that base64 may contain between its lines


def bytes_of(given: object, name: str, most: int) -> bytes | None:
    """The bytes of a file. ``given`` is a path, a data URL, bytes, or an open file, which is read from its
    beginning. Returns None for anything else.

    Raises :class:`InvalidRequestError` if the file cannot be read or has more than ``most`` bytes, or if
    ``given`` is a URL of another machine. ``name`` is the argument's name for messages.

    >>> import io
    >>> bytes_of(io.BytesIO(b"RIFF"), "audio", 10), bytes_of(7, "audio", 10)
    (b'RIFF', None)
    >>> bytes_of("https://example.com/cat.png", "image", 10)
    Traceback (most recent call last):
        ...
    gemlet.errors.InvalidRequestError: image: got 'https://example.com/cat.png', but gemlet fetches nothing...
    """
    if isinstance(given, str) and given.startswith("data:"):
        return read_data_url(given, name, most)
    if is_path(given):
        with open_path(given, name) as file:
            return _read(file, given, name, most)
    if isinstance(given, bytes | bytearray | memoryview):
        size = memoryview(given).nbytes
        if size > most:
            raise _too_many(name, size, most)
        return bytes(given)
    if callable(getattr(given, "read", None)) and not isinstance(given, type):
        return _read(given, given, name, most)  # type: ignore[arg-type]
    return None


def is_path(given: object) -> bool:
    """Whether ``given`` is a path, or a string that may be a path."""
    return isinstance(given, os.PathLike) or (isinstance(given, str) and not given.startswith("data:"))


def open_path(given: object, name: str) -> BinaryIO:
    """Opens the file at the path ``given``. Raises :class:`InvalidRequestError` if it cannot be opened."""
    assert isinstance(given, str | os.PathLike)
    path: str | bytes = os.fspath(given)
    if isinstance(path, str):
        if _ADDRESS.match(path):
            raise InvalidRequestError(
                f"{name}: got {show_argument(path)}, but gemlet fetches nothing; download it, and pass the "
                "path or the bytes of the file"
            )
        path = own_path(path)
    try:
        return open_regular(path)
    except (OSError, ValueError) as problem:
        raise _unreadable(given, name, problem) from None


def read_data_url(url: str, name: str, most: int) -> bytes:
    """The bytes in a data URL.

    >>> read_data_url("data:image/png;base64,AAEC", "image", 10)
    b'\\x00\\x01\\x02'
    """
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidRequestError(f"{name}: got {show_argument(url)}, expected a data URL with base64")
    return decode_base64(data, name, most)


def decode_base64(text: str, name: str, most: int) -> bytes:
    """Decodes a text in base64, which may be split into lines.

    >>> decode_base64("AA\\nEC\\n", "image", 10)
    b'\\x00\\x01\\x02'
    """
    if len(text) > most * 3 // 2 + 4:
        raise _too_many(name, len(text) * 3 // 4, most)
    try:
        data = base64.b64decode(text.encode("ascii").translate(None, _BLANKS), validate=True)
    except (binascii.Error, ValueError) as problem:
        raise InvalidRequestError(f"{name}: its base64 is damaged: {reason_of(problem)}") from None
    if len(data) > most:
        raise _too_many(name, len(data), most)
    return data


def _read(file: BinaryIO, given: object, name: str, most: int) -> bytes:
    parts: list[bytes] = []
    left = most + 1
    try:
        size = _rewound(file)
        while left > 0 and size <= most:
            part: object = file.read(left)  # a stream may return fewer bytes than requested
            if not isinstance(part, bytes):
                raise InvalidRequestError(
                    f"{name}: {show_argument(given)} gives {type(part).__name__}, expected bytes; open a "
                    'file with the mode "rb"'
                )
            if not part:
                break
            parts.append(part)
            left -= len(part)
    except InvalidRequestError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as problem:
        raise _unreadable(given, name, problem) from None
    if size > most or left <= 0:
        raise _too_many(name, max(size, most + 1), most)
    return b"".join(parts)


def _rewound(file: BinaryIO) -> int:
    """Moves to the beginning of a file and returns its size. A stream has no size and cannot be moved; the
    result is then 0."""
    try:
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(0)
    except (AttributeError, OSError):
        return 0
    return size


def _unreadable(given: object, name: str, problem: Exception) -> InvalidRequestError:
    why = reason_of(getattr(problem, "strerror", None) or problem).strip("'")
    if getattr(problem, "errno", None) == errno.ENAMETOOLONG:
        why += "; base64 belongs into a data URL, data:...;base64,..."
    what = repr(os.fspath(given)) if isinstance(given, str | os.PathLike) else show_argument(given)
    if len(what) > _SHOWN:
        what = what[:_SHOWN] + "..."
    return InvalidRequestError(f"{name}: {what} cannot be read: {why}")


def _too_many(name: str, found: int, most: int) -> InvalidRequestError:
    return InvalidRequestError(f"{name}: the file has {found} bytes; expected at most {most}")
