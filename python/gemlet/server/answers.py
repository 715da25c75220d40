"""Answers that watch their client. The work for an answer ends when the connection closes. A stream that has
nothing to send sends pings."""

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
_MOST_HELD = 1 << 14  # bytes; when this many are waiting, they are sent
_as_text = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":")
).encode  # made once, because it encodes a line for every token


def as_line(value: object) -> bytes:
    """JSON without line breaks. Half of a surrogate pair, which errors may quote, becomes JSON's escape.

    >>> as_line({"a": chr(0xD83D)}).decode()
    '{"a":"\\\\ud83d"}'
    """
    return _as_text(value).encode("utf-8", "backslashreplace")


def as_line_in_pieces(value: object, depth: int = 5) -> bytes:
    """The line of :func:`as_line` for a large value, made in a thread other than the event loop's. Python's
    encoder keeps the interpreter's lock until it is done, so it gets small pieces: the values that are
    ``depth`` levels deep.

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
    """The pauses that streams make after they have sent something. The more streams pause at the same time,
    the longer each pause is.

    Sending takes longer than writing a token. So the tokens that a fast model writes during a pause are sent
    together. Streams of a slow model wait for tokens and hardly pause.
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
    """An answer that is sent in pieces as they are made.

    Args:
        pieces: what to send. They are collected until :meth:`flush` is called, or until there are many bytes.
            If ``pieces`` raises an error, the answer ends with the text that ``on_error`` makes from the
            error. If ``on_error`` is None, the connection is closed, because the answer has announced its
            length.
        ping: what to send when nothing was sent for ``ping_seconds``; None: nothing.
        stuck_seconds: after this many seconds without reading, a client counts as disconnected.
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
        """Sends the collected pieces; returns whether there were any."""
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
