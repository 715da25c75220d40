"""Reads a form with a file (multipart/form-data). The file goes to the disk as it arrives."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from gemlet.base.patterns import late_pattern
from gemlet.base.records import field, record
from gemlet.server.problems import ClientGone, Problem

__all__ = ["Upload", "nested", "read_form"]

_MOST_PARTS = 32
_MOST_TEXT = 4096  # bytes of a field that is not the file
_MOST_AROUND = 1 << 20  # bytes of a body besides its file
_BOUNDARY = late_pattern(rb"[0-9A-Za-z'()+_,./:=? -]{1,70}")
_SLOWEST = 20  # a whole upload may take so many times the seconds for which a client may send nothing


@record
class Upload:
    """A form: its fields, and the name and the length of its file. The file is at the given path."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    size: int = 0


async def read_form(
    request: Request, place: Path, *, name: str, most: int, room: int, seconds: float
) -> Upload:
    """Reads the form of the request. The content of its file ``name`` is written to ``place``.

    Args:
        most: the most bytes of the file.
        room: how many bytes the client may still store.
        seconds: how long the client may send nothing.

    Raises:
        Problem: the body is not such a form, is too large, or comes too slowly.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Problem(415, "the body is compressed (Content-Encoding); send it as it is")
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
        raise Problem(415, "expected a form (multipart/form-data) with the file", param=name)
    length = request.headers.get("content-length", "0")
    size = int(length[:15]) if length.isascii() and length.isdigit() else 0
    if len(length) > 15 or size > most + _MOST_AROUND:
        raise _too_large(most)
    if size > room + _MOST_AROUND:
        raise _no_room()
    with open(place, "wb") as file:
        form = _Form(name, file, most, room)
        parser = MultipartParser(boundary, form.callbacks(), max_header_count=8, max_header_size=4096)
        end = time.monotonic() + _SLOWEST * seconds
        try:
            more = True
            while more:
                with anyio.fail_after(max(0.0, min(seconds, end - time.monotonic()))):
                    message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece, more = message.get("body", b""), message.get("more_body", False)
                form.count(len(piece))
                # Unusual pieces take long to parse, and a slow disk takes long to write.
                await anyio.to_thread.run_sync(parser.write, piece)
            parser.finalize()
        except TimeoutError:
            raise Problem(408, "the body came too slowly", kind="timeout_error") from None
        except FormParserError:
            raise Problem(400, "the body is not a well-formed form", code="invalid_form") from None
        if not form.is_whole:
            raise Problem(400, "the form is cut off", code="invalid_form")
        if form.upload.filename is None:
            raise Problem(400, f"{name} is missing", param=name, code="missing_field")
    return form.upload


def _too_large(most: int) -> Problem:
    return Problem(413, f"the file is larger than {most} bytes", code="request_too_large")


def _no_room() -> Problem:
    said = "there is no more room for your files here; delete some"
    return Problem(413, said, code="storage_full", param="file")


class _Form:
    """Stores what the parser finds in the form."""

    def __init__(self, name: str, file: BinaryIO, most: int, room: int) -> None:
        self.upload = Upload()
        self.is_whole = False
        self._name, self._file, self._most, self._room = name, file, most, room
        self._parts = self._read = 0
        self._header = [b"", b""]
        self._disposition: bytes = b""
        self._part = ""  # the name of the present part
        self._text: bytearray | None = None  # text of a field; None while the file is read

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def count(self, length: int) -> None:
        self._read += length
        if self._read > self._most + _MOST_AROUND:
            raise _too_large(self._most)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise Problem(400, f"the form has more than {_MOST_PARTS} parts", code="invalid_form")
        self._header, self._disposition = [b"", b""], b""

    def _add_header(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _end_header(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = [b"", b""]

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        if self._part in self.upload.fields or (
            self._part == self._name and self.upload.filename is not None
        ):
            raise Problem(
                400, f"{self._part[:100]} is in the form twice; send it once", param=self._part[:100]
            )
        if self._part == self._name:
            filename = options.get(b"filename", b"upload").decode("utf-8", "replace")
            self.upload.filename = re.split(r"[/\\]", filename)[-1][:255] or "upload"
            self._text = None
        else:
            self._text = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._text is not None:
            self._text += data[start:end]
            if len(self._text) > _MOST_TEXT:
                raise Problem(
                    400, f"{self._part[:100]} is longer than {_MOST_TEXT} bytes", param=self._part[:100]
                )
            return
        self.upload.size += end - start
        if self.upload.size > self._most:
            raise _too_large(self._most)
        if self.upload.size > self._room:
            raise _no_room()
        self._file.write(data[start:end])

    def _end_part(self) -> None:
        if self._text is not None:
            try:
                self.upload.fields[self._part] = self._text.decode("utf-8")
            except UnicodeDecodeError:
                raise Problem(400, f"{self._part[:100]} is not UTF-8", param=self._part[:100]) from None

    def _end(self) -> None:
        self.is_whole = True


def nested(fields: Mapping[str, str]) -> dict[str, Any]:
    """Turns fields such as ``expires_after[seconds]`` into nested objects.

    >>> nested({"purpose": "batch", "expires_after[seconds]": "3600"})
    {'purpose': 'batch', 'expires_after': {'seconds': '3600'}}
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        outer, bracket, inner = name.partition("[")
        if not bracket:
            found[name] = value
            continue
        inside = found.setdefault(outer, {})
        if not isinstance(inside, dict) or not inner.endswith("]"):
            raise Problem(400, f"{name[:100]} is not a field of this request", param=name[:100])
        inside[inner[:-1]] = value
    return found
