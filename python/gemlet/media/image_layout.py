"""Checks the structure of an image file before the image is decoded: :func:`check_layout`.

A small file can make a decoder work for hours. Pillow reads each segment of a file separately, even an empty
segment, and a progressive JPEG may contain thousands of scans, each of which goes over all pixels.
"""

from __future__ import annotations

from gemlet.errors import InvalidRequestError

__all__ = ["check_layout", "check_scans"]

# A file may have _MOST_SEGMENTS segments, and one more for every _BYTES_EACH bytes. The usual PNG writer
# makes segments of 8 KiB.
_MOST_SEGMENTS, _BYTES_EACH = 2048, 4096
_MOST_SCANS = 64  # scans of a JPEG; a progressive one has about ten
_MOST_SCANNED = 1 << 30  # pixels of all scans
_PNG, _JPEG, _GIF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", (b"GIF87a", b"GIF89a")
_SCAN = 0xDA
_ALONE = (0x00, 0x01, *range(0xD0, 0xDA))  # markers of JPEG without a length


def check_layout(data: bytes, name: str) -> None:
    """Raises :class:`InvalidRequestError` for a file with more segments than a normal image has. ``name`` is
    the argument's name for messages. Damage is not checked here; the decoder reports it.

    >>> check_layout(b"\\x89PNG\\r\\n\\x1a\\n" + bytes(12) * 3000, "image")
    Traceback (most recent call last):
        ...
    gemlet.errors.InvalidRequestError: image: the file is in more than 2056 pieces; save the image again
    """
    most = _MOST_SEGMENTS + len(data) // _BYTES_EACH
    if data.startswith(_PNG):
        count = _png_chunks(data, most)
    elif data.startswith(_JPEG):
        count = _jpeg_segments(data, most)
    elif data.startswith(_GIF):
        count = _gif_blocks(data, most)
    else:
        return
    if count > most:
        raise InvalidRequestError(f"{name}: the file is in more than {most} pieces; save the image again")


def check_scans(data: bytes, name: str, pixels: int) -> None:
    """Raises :class:`InvalidRequestError` for a JPEG with too many scans. ``pixels`` is its number of pixels.

    >>> check_scans(b"\\xff\\xd8" + b"\\xff\\xda" * 70, "image", 100)
    Traceback (most recent call last):
        ...
    gemlet.errors.InvalidRequestError: image: the file goes 70 times over its 100 pixels; expected at most ...
    """
    scans = data.count(b"\xff\xda") if data.startswith(_JPEG[:2]) else 0
    most = min(_MOST_SCANS, _MOST_SCANNED // max(1, pixels))
    if scans > most:
        raise InvalidRequestError(
            f"{name}: the file goes {scans} times over its {pixels} pixels; expected at most {most} times; "
            "save the image again"
        )


def _png_chunks(data: bytes, most: int) -> int:
    at, count = len(_PNG), 0
    while at + 8 <= len(data) and count <= most:
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        count += 1
    return count


def _jpeg_segments(data: bytes, most: int) -> int:
    """The number of segments before the first scan. A byte between two segments counts as one."""
    at, count = 2, 0
    while at + 2 <= len(data) and count <= most:
        count += 1
        if data[at] != 0xFF or data[at + 1] == 0xFF:
            at += 1
        elif data[at + 1] in _ALONE:
            at += 2
        elif data[at + 1] == _SCAN:
            break
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return count


def _gif_blocks(data: bytes, most: int) -> int:
    """The number of blocks before the first image."""
    flags = data[10] if len(data) > 10 else 0
    at, count = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    while at < len(data) and count <= most:
        count += 1
        if data[at] in b",;":  # an image, or the end
            break
        if data[at] != 0x21:  # not a known block
            at += 1
            continue
        at += 2
        while at < len(data) and count <= most:
            size, count = data[at], count + 1
            at += 1 + size
            if size == 0:
                break
    return count
