"""Reading the body of a request: size, time, encoding and depth are limited before anything is parsed."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from starlette.requests import Request

from gemlet.base.strict_json import parse_json_object
from gemlet.errors import InvalidRequestError
from gemlet.server.problems import ClientGone, Problem

__all__ = ["MOST_DEPTH", "Bodies", "depth_of"]

MOST_DEPTH = 64
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def depth_of(data: bytes) -> int:
    """How deep lists and objects lie in one another, in JSON that need not be well-formed.

    >>> depth_of(b'{"a": [1, "[[["]}'), depth_of(b"[" * 1000)
    (2, 1000)
    """
    depth = deepest = 0
    for match in _BRACKET.finditer(_STRING.sub(b"", data)):
        depth += 1 if match[0] in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


class Bodies:
    """Reads bodies. All that are being read at a time share a limit, too.

    Args:
        most: bytes of one body.
        most_together: bytes of all bodies that are being read or answered.
        seconds: how long a body may take to arrive.
    """

    def __init__(self, most: int, most_together: int, seconds: float) -> None:
        self.most = most
        self.most_together = max(most, most_together)
        self.seconds = seconds
        self._held = 0

    async def json(self, request: Request) -> dict[str, Any]:
        """The JSON object that the request brings; raises :class:`Problem`."""
        return parse(await self._read(request))

    async def _read(self, request: Request) -> bytes:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            raise Problem(415, "the body is compressed (Content-Encoding); send it as it is")
        length = request.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise Problem(400, "Content-Length is no number")
        if len(length) > 15 or int(length) > self.most:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._collect(request), self.seconds)
        except asyncio.TimeoutError:
            raise Problem(
                408, f"the body did not arrive within {self.seconds:g} s", kind="timeout_error"
            ) from None

    async def _collect(self, request: Request) -> bytes:
        pieces: list[bytes] = []
        held = 0
        try:
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece: bytes = message.get("body", b"")
                held += len(piece)
                self._held += len(piece)
                if held > self.most:
                    raise self._too_large()
                if self._held > self.most_together:
                    raise Problem(
                        503,
                        "the server is reading too many large requests; try again",
                        kind="overloaded_error",
                        headers={"Retry-After": "1"},
                    )
                pieces.append(piece)
                if not message.get("more_body", False):
                    return b"".join(pieces)
        finally:
            self._held -= held

    def _too_large(self) -> Problem:
        return Problem(413, f"the body is larger than {self.most} bytes", code="request_too_large")


def parse(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``; strict, and at most MOST_DEPTH deep."""
    if depth_of(data) > MOST_DEPTH:
        raise Problem(400, f"the body is nested more than {MOST_DEPTH} levels deep", code="too_deep")
    try:
        return parse_json_object(data, where="body", error=InvalidRequestError)
    except InvalidRequestError as error:
        raise Problem(400, str(error), code="invalid_json") from None
