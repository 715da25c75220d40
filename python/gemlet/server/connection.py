"""An HTTP connection of the server, based on the connection of uvicorn. :class:`Connection` measures how long
the client has been idle, and it can send an answer while the client is still sending the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gemlet.server.answers import as_line
from gemlet.server.problems import Problem, as_json

__all__ = ["Connection"]

_LINGER = 2.0  # seconds until the server closes a connection on which the client is still sending
_MOST_LEFT = 1 << 20  # the most bytes that the server reads and discards in this time


class Connection(H11Protocol):
    """Remembers how long it has been waiting for a request, or for the client to read the answer.

    The server may answer a request before the whole request has arrived. If the server then closed the
    connection at once, the client might lose the answer. So the server still reads and discards the rest of
    the request, for at most ``_LINGER`` seconds and at most ``_MOST_LEFT`` bytes.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.access_log = False  # uvicorn's access log would contain paths exactly as clients send them
        self.idle_since = self._moved_at = time.monotonic()
        self._unsent = 0
        self._left: int | None = None  # bytes that the server may still discard; None before it discards any
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Transport(transport, self._close))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        if self._left is None:
            super().data_received(data)
            return
        self._left -= len(data)
        if self._left < 0:
            self._close()

    def on_response_complete(self) -> None:
        self.idle_since = time.monotonic()
        super().on_response_complete()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._unset_keepalive_if_required()  # uvicorn leaves the timer if the client breaks the connection
        if self._end is not None:
            self._end.cancel()
        transport: Any = self.transport
        transport.forget()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that is not valid HTTP. ``msg`` is uvicorn's description of the error."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the answer has begun
            self.transport.close()
            return
        body = as_line(as_json(Problem(400, "the request is malformed", code="bad_request"), "", ""))
        if not self.is_idle:  # the body is malformed, so the request gets no other answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            body = b"" if self.scope["method"] == "HEAD" else body
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        answer = [
            h11.Response(status_code=400, headers=[*headers, ("connection", "close")], reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in answer))
        self.transport.close()

    def _should_upgrade(self) -> bool:
        """Always False: a request for another protocol is answered like any other request. (Otherwise uvicorn
        would log the advice to install a library for that protocol.)"""
        return False

    def _close(self) -> None:
        """Closes the connection. If the client is still sending its request, this happens after ``_LINGER``
        s."""
        transport: Any = self.transport
        if self._left is not None or self.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            transport.close_now()
            return
        self._left = _MOST_LEFT
        self._end = self.loop.call_later(_LINGER, transport.close_now)
        self.flow.resume_reading()
        try:
            transport.write_eof()
        except OSError:  # the client is gone already
            transport.close_now()

    @property
    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def stuck_since(self, now: float) -> float:
        """Returns the time when the client last read a part of the answer, or ``now`` if no bytes wait to be
        sent. The precision depends on how often the server calls this method."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._moved_at = unsent, now
        return self._moved_at


class _Transport:
    """A transport whose ``close`` calls :meth:`Connection._close`."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._is_closing = False
        self._close = close
        self.write = transport.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._is_closing = True
        self._close()

    def close_now(self) -> None:
        self._transport.close()

    def forget(self) -> None:
        """Drops the reference to the closed connection, because the two refer to each other."""
        self._close = self._transport.close

    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()
