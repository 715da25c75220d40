"""A connection of uvicorn's: since when it waits, and how it ends while its client still sends."""

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

_LINGER = 2.0  # seconds in which a client that still sends may take its answer
_MOST_LEFT = 1 << 20  # bytes that are thrown away meanwhile


class Connection(H11Protocol):
    """Remembers since when it has been waiting for a request, or for the client to take what is sent.

    An answer may be there before all of the request is. To close then would break the connection, and the
    client may lose the answer: what it sends is read and thrown away, for a moment and up to a limit.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.access_log = False  # it would write paths as clients send them
        self.idle_since = self._moved_at = time.monotonic()
        self._unsent = 0
        self._left: int | None = None  # bytes that may still be thrown away; None: it does not linger
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
        """The request is no HTTP. ``msg`` says so in uvicorn's words."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the answer has begun
            self.transport.close()
            return
        body = as_line(as_json(Problem(400, "the request is malformed", code="bad_request"), "", ""))
        if not self.is_idle:  # its body is malformed: it gets this answer, and no other
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
        """Never: the request is answered as if it had not asked for another protocol. (uvicorn would advise,
        in the log, to install one.)"""
        return False

    def _close(self) -> None:
        """Closes, at once if the client has sent all of its request."""
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
        """When the client last took something of what is to be sent; ``now`` where nothing waits. It knows
        only what it saw when it was asked before."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._moved_at = unsent, now
        return self._moved_at


class _Transport:
    """A transport whose ``close`` is the connection's."""

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
        """It is closed: the connection, which has it, need not be kept for it."""
        self._close = self._transport.close

    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()
