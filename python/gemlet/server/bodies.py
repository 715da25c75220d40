"""Reads and parses the bodies of requests. Checks the encoding, the size, the time of arrival and the
depth."""

from __future__ import annotations

from typing import Any

import anyio
from starlette.requests import Request

from gemlet.base.strict_json import parse_json_object
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError
from gemlet.server.call import Call, call_of
from gemlet.server.problems import ClientGone, Problem

__all__ = ["MOST_DEPTH", "Bodies", "has_more_values", "is_deeper", "parse"]

MOST_DEPTH = 64  # the most levels of nested lists and objects in a body
# The most brackets, commas and colons in a body, including the ones inside strings. To parse this many blocks
# the server for some hundred milliseconds.
_MOST_VALUES = 1 << 20


def is_deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are nested more than ``most`` levels deep.

    >>> is_deeper({"a": [1, "[[["]}, 2), is_deeper({"a": [[]]}, 2)
    (False, True)
    """
    level = [value]
    for _ in range(most):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def has_more_values(data: bytes, most: int) -> bool:
    """Whether ``data`` has more than ``most`` opening brackets, commas and colons. Characters inside strings
    count, too."""
    return sum(map(data.count, (b"[", b"{", b",", b":"))) > most


class Bodies:
    """Reads bodies. One limit is for each body. Another limit is for all bodies together whose requests are
    not yet finished.

    Args:
        most: the most bytes of one body.
        most_together: the most bytes of all bodies whose requests are not yet finished.
        seconds: the most seconds that a body may take to arrive.
    """

    def __init__(self, most: int, most_together: int, seconds: float) -> None:
        self.most = most
        self.most_together = max(most, most_together)
        self.seconds = seconds
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """Returns the body of the request. Raises :class:`Problem` if the body breaks a limit."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            raise Problem(
                415,
                f"Content-Encoding: got {show(encoding)}, expected no compression; decompress the body",
            )
        length = request.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise Problem(400, f"Content-Length: got {show(length)}, expected a number of bytes")
        if len(length) > 15 or int(length) > self.most:
            raise self._too_large()
        call = call_of(request)
        try:
            # asyncio.wait_for may lose a cancellation before 3.12.
            with anyio.fail_after(self.seconds) as scope:
                call.cancels.append(scope.cancel)
                return await self._collect(request)
        except TimeoutError:
            raise Problem(
                408, f"the body did not arrive within {self.seconds:g} s; send it again", kind="timeout_error"
            ) from None
        finally:
            call.cancels.remove(scope.cancel)
        assert call.ending is not None
        raise call.ending

    async def _collect(self, request: Request) -> bytes:
        pieces: list[bytes] = []
        held = 0

        def release(call: Call) -> None:
            self._held -= held

        call_of(request).at_end.append(release)
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
                    "the server has too many large requests; try again",
                    kind="overloaded_error",
                    headers={"Retry-After": "1"},
                )
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)

    def _too_large(self) -> Problem:
        return Problem(
            413, f"the body is larger than {self.most} bytes; send a smaller one", code="request_too_large"
        )


def parse(data: bytes) -> dict[str, Any]:
    """Parses ``data`` as strict JSON. Raises :class:`Problem` if the value is not an object or too deep."""
    too_deep = Problem(400, f"the body is nested more than {MOST_DEPTH} levels deep", code="too_deep")
    if has_more_values(data, _MOST_VALUES):
        raise Problem(
            400,
            f"the body has more than {_MOST_VALUES} brackets, commas and colons; send it in several requests",
            code="invalid_json",
        )
    try:
        found = parse_json_object(data, where="body", error=InvalidRequestError)
    except InvalidRequestError as error:
        if isinstance(error.__context__, RecursionError):
            raise too_deep from None
        raise Problem(400, str(error), code="invalid_json") from None
    if is_deeper(found, MOST_DEPTH):
        raise too_deep
    return found
