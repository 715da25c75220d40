"""The HTTP answers of the server. If the client disconnects, the server stops the work for the answer. If a
stream has nothing to send for some time, the server sends a ping."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gemlet.server.call import Call, call_of
from gemlet.server.problems import ClientGone, Problem, forget_frames, problem_of

__all__ = [
    "JSONAnswer",
    "Rest",
    "StreamAnswer",
    "as_line",
    "as_line_in_pieces",
    "until_ended",
    "while_connected",
]

_Result = TypeVar("_Result")
_MOST_HELD = 1 << 14  # bytes; the server sends the collected pieces when they reach this size
_as_text = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":")
).encode  # made once, because it encodes a line for every token


def as_line(value: object) -> bytes:
    """Returns ``value`` as JSON without line breaks. Half of a surrogate pair becomes a JSON escape, because
    UTF-8 cannot encode it. Error messages may quote such text.

    >>> as_line({"a": chr(0xD83D)}).decode()
    '{"a":"\\\\ud83d"}'
    """
    return _as_text(value).encode("utf-8", "backslashreplace")


def as_line_in_pieces(value: object, depth: int = 5) -> bytes:
    """Returns the same bytes as :func:`as_line`. It is for large values, in a thread beside the event loop.
    Python's JSON encoder holds the interpreter lock until it returns. So this function encodes the values
    that are ``depth`` levels deep one by one, and the event loop can run between them.

    >>> as_line_in_pieces({"a": [1, {"b": None}], "c": {}}, 2) == as_line({"a": [1, {"b": None}], "c": {}})
    True
    """
    if depth and value and isinstance(value, dict):
        parts = [as_line(name) + b":" + as_line_in_pieces(one, depth - 1) for name, one in value.items()]
        return b"{" + b",".join(parts) + b"}"
    if depth and value and isinstance(value, list):
        return b"[" + b",".join([as_line_in_pieces(one, depth - 1) for one in value]) + b"]"
    return as_line(value)


class JSONAnswer(Response):
    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return as_line(content)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(call: Call) -> None:
    ended = asyncio.Event()
    call.cancels.append(ended.set)
    try:
        if call.ending is None:
            await ended.wait()
    finally:
        call.cancels.remove(ended.set)
    assert call.ending is not None
    raise call.ending


async def _first_of(work: Coroutine[Any, Any, _Result], *watchers: Coroutine[Any, Any, None]) -> _Result:
    """Returns the result of ``work``. If a watcher ends first, the work is cancelled. Then the exception of
    the watcher is raised, or :class:`ClientGone` if the watcher returned."""
    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(task) for task in (work, *watchers)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            result: _Result = tasks[0].result()
            return result
        for watcher in tasks[1:]:
            if watcher.done():
                watcher.result()
        raise ClientGone
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Returns the result of ``work``. If the client disconnects, the work is cancelled and
    :class:`ClientGone` is raised. If the server ends the call, the work is cancelled and :class:`Problem` is
    raised.

    The body of the request must have been read before.
    """
    return await _first_of(work, _gone(request.receive), _ended(call_of(request)))


async def until_ended(call: Call, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Returns the result of ``work``, which reads the body of a request. If the server ends the call
    meanwhile, the work is cancelled and :class:`Problem` is raised."""
    return await _first_of(work, _ended(call))


class Rest:
    """Makes a stream pause after it has sent something. The more streams pause at the same time, the longer
    each pause is.

    Sending a token takes longer than generating one. So a stream sends all tokens that a fast model
    generates during a pause together. Streams of a slow model wait for tokens and hardly pause.
    """

    def __init__(self, step: float = 0.003, most: float = 0.1) -> None:
        self.step, self.most = step, most
        self.resting = 0

    async def __call__(self, most: float) -> None:
        """Pauses for at most ``most`` seconds."""
        self.resting += 1
        try:
            await asyncio.sleep(min(self.step * self.resting, self.most, most))
        finally:
            self.resting -= 1


class StreamAnswer(Response):
    """A streamed answer.

    Args:
        pieces: the content of the answer. Pieces are collected until :meth:`flush` is called, or until they
            reach 16 KiB.
        on_error: makes the last piece of the answer if ``pieces`` raises an error. None closes the
            connection instead, for an answer that has announced its length.
        ping: the bytes to send after ``ping_seconds`` without a piece; None to send no pings.
        stuck_seconds: a client that reads nothing for this many seconds counts as disconnected.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        call: Call,
        *,
        media_type: str,
        on_error: Callable[[Problem], bytes] | None,
        ping: bytes | None,
        ping_seconds: float,
        stuck_seconds: float,
    ) -> None:
        super().__init__(None, media_type=media_type)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"  # asks proxies to forward each piece at once
        self._pieces = pieces
        self._call = call
        self._on_error = on_error
        self._ping = ping
        self._ping_seconds = ping_seconds
        self._stuck_seconds = stuck_seconds
        self._sent = time.monotonic()
        self._sending = 0
        self._held = bytearray()  # pieces that are not sent yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await _first_of(self._produce(), _gone(receive), self._watch(), _ended(self._call))
        except Problem as problem:
            if problem is not self._call.ending:
                raise
            await self._fail(problem)

    async def _produce(self) -> None:
        try:
            try:
                async for piece in self._pieces:
                    self._held += piece
                    if len(self._held) >= _MOST_HELD:
                        await self.flush()
            finally:
                close = getattr(self._pieces, "aclose", None)
                if close is not None:
                    await close()
        except ClientGone:
            raise
        except Exception as error:
            await self._fail(error)
            if problem_of(error).status == 500:
                raise
            forget_frames(error)
        else:
            await self._end()

    async def _fail(self, error: Exception) -> None:
        """Sends the error to the client as the last piece of the answer."""
        problem = problem_of(error)
        self._call.problem = problem.code or problem.kind
        await self._call.close()
        if self._on_error is None:
            raise error
        self._held += self._on_error(problem)
        await self._end()

    async def flush(self) -> bool:
        """Sends the collected pieces. Returns whether there were any pieces."""
        if not self._held:
            return False
        held, self._held = bytes(self._held), bytearray()
        await self._put(held)
        return True

    async def _end(self) -> None:
        await self._put(bytes(self._held), more=False)

    async def _put(self, piece: bytes, *, more: bool = True) -> None:
        if not self._sending:
            self._sent = time.monotonic()
        self._sending += 1
        try:
            await self._send({"type": "http.response.body", "body": piece, "more_body": more})
            await asyncio.sleep(0)  # sending to a broken connection does not wait; the watchers need a turn
        finally:
            self._sending -= 1
        self._sent = time.monotonic()

    async def _watch(self) -> None:
        """Pings the client while it waits for a piece. Returns when the client is stuck."""
        pause = min(self._ping_seconds, self._stuck_seconds) / 2
        while True:
            await asyncio.sleep(pause)
            silent = time.monotonic() - self._sent
            if self._sending:
                if silent > self._stuck_seconds:
                    return
            elif self._ping is not None and silent >= self._ping_seconds:
                await self._put(self._ping)
