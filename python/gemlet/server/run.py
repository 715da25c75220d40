"""Runs the application under uvicorn: the socket, signals, idle connections, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from gemlet.errors import UnsupportedError
from gemlet.server.app import make_app
from gemlet.server.connection import Connection
from gemlet.server.logs import to_stderr
from gemlet.server.settings import ModelSpec, Settings

__all__ = ["Server", "bind", "serve"]

_BACKLOG = 1024
_PARTING = 2.0  # seconds in which clients may take the rest of answers that the server ends


class Server(uvicorn.Server):
    """uvicorn's server with the application of the settings.

    Attributes:
        failure: the error of a model that could not be loaded. The server ends then.
    """

    def __init__(self, settings: Settings, specs: Sequence[ModelSpec]) -> None:
        self.failure: BaseException | None = None
        self.app = make_app(settings, specs, self._fail)
        super().__init__(
            uvicorn.Config(
                self.app,
                http=Connection,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=max(1, round(settings.idle_seconds)),
                timeout_graceful_shutdown=settings.drain_seconds + _PARTING,  # type: ignore[arg-type]
            )
        )
        self._drain_seconds = settings.drain_seconds
        self._idle_seconds = settings.idle_seconds
        self._stuck_seconds = settings.stuck_seconds

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self._drain_seconds, self.app.end_all)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def on_tick(self, counter: int) -> bool:
        """Ends connections whose client sends no whole request, or takes nothing of an answer."""
        now = time.monotonic()
        for connection in list(self.server_state.connections) if counter % 5 == 0 else ():
            if not isinstance(connection, Connection):
                continue
            if connection.stuck_since(now) < now - self._stuck_seconds:
                connection.transport.abort()  # close() would wait until everything is sent
            elif connection.is_idle and connection.idle_since < now - self._idle_seconds:
                connection.transport.close()
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises :class:`UnsupportedError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(_BACKLOG)
        except OSError:
            found.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnsupportedError(f"cannot listen on {host}, port {port}: {reason}") from None
    return found


def serve(settings: Settings, specs: Sequence[ModelSpec], say: Callable[[str], None]) -> int:
    """Serves until a signal ends the process. Returns the exit code. ``say`` is called with the address.

    Raises:
        UnsupportedError: the server cannot listen on the address.
        GemletError: a model cannot be loaded.
    """
    listener = bind(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    _allow_many_connections()
    handler = to_stderr()
    names = ("gemlet.server", "uvicorn.error", "asyncio", "opentelemetry")
    for logger in map(logging.getLogger, names):
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    # When uvicorn has stopped, it raises the signal again. These handlers let the process end with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _done)
    server = Server(settings, specs)
    say(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    with contextlib.closing(listener):
        try:
            asyncio.run(server.serve(sockets=[listener]))
        except SystemExit:  # uvicorn raises it if the application does not start
            if server.failure is None:
                raise
    if server.failure is not None:
        raise server.failure
    return 0


def _done(number: int, frame: FrameType | None) -> None:
    return None


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
