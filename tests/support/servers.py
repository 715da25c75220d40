"""Runs servers on a free port of loopback, in a thread of the test's process or in a separate process, and
sends requests to them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from support.waiting import PATIENCE, until


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


@dataclass
class RunningServer:
    """A running server. :meth:`ask` sends a request to it."""

    port: int
    server: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        key: str | None = None,
    ) -> Answer:
        """Sends a request and returns the answer. A ``body`` of bytes is sent unchanged, any other one as
        JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # it may refuse before all is sent
                connection.request(method, path, data, sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def post(self, path: str, body: object, **more: Any) -> Answer:
        return self.ask("POST", path, body, **more)

    def running(self) -> int:
        """The number of requests that are running."""
        return int(self.server.app.service.limiter.running)

    def wait_idle(self) -> None:
        until(lambda: not self.running(), "requests still run")


@dataclass
class Process:
    """A server in a separate process."""

    port: int
    id: int

    def status(self, key: str | None = None) -> Any:
        return RunningServer(self.port, None).ask("GET", "/status", key=key).json

    def resident(self) -> int:
        """The resident memory in bytes."""
        with open(f"/proc/{self.id}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self) -> int:
        """The number of open files and connections."""
        return len(os.listdir(f"/proc/{self.id}/fd"))

    def wait_idle(self, key: str | None = None) -> None:
        """Waits until no request runs and the engine has freed the memory of all requests."""

        def idle() -> bool:
            state = self.status(key)
            kept = [model["memory"]["kv_cache"] for model in state["models"]]
            return state["requests"]["running"] == 0 and not any(kept)

        until(idle, "requests still run, or have memory")


@contextmanager
def spawned(*flags: str) -> Iterator[Process]:
    """Runs the command ``gemlet serve`` until the end of the ``with`` block, which begins when the server is
    ready."""
    with TemporaryFile() as log:
        command = [sys.executable, "-m", "gemlet", "serve", "--port", "0", *flags]
        process = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + PATIENCE
            while not (
                found := re.search(rb"http://127\.0\.0\.1:(\d+)", _read(log))
            ) or b'"ready"' not in _read(log):
                assert process.poll() is None, _read(log)
                assert time.monotonic() < end, "the server is not ready"
                time.sleep(0.05)
            yield Process(int(found[1]), process.pid)
            assert process.poll() is None, "the server ended"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _read(file: BinaryIO) -> bytes:
    return os.pread(file.fileno(), 1 << 20, 0)


@contextmanager
def serving(
    settings: Any = None,
    specs: Sequence[Any] | None = None,
    while_starting: Callable[[RunningServer], None] = lambda _: None,
) -> Iterator[RunningServer]:
    """Runs a server in a thread until the end of the ``with`` block, which begins when the server is ready.
    The default of ``specs`` is the demo model. ``while_starting`` is called before the server is ready."""
    from gemlet.server.run import Server, bind
    from gemlet.server.settings import ModelSpec, Settings

    listener = bind("127.0.0.1", 0)
    server = Server(settings or Settings(port=0), specs or [ModelSpec("demo")])
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        running = RunningServer(listener.getsockname()[1], server)
        end = time.monotonic() + PATIENCE
        while not server.started:
            assert thread.is_alive(), "the server ended"
            time.sleep(0.01)
        while_starting(running)
        while running.ask("GET", "/ready").status != 200:
            assert thread.is_alive(), "the server ended"
            assert time.monotonic() < end, "the server is not ready"
            time.sleep(0.02)
        yield running
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
        assert not thread.is_alive(), "the server does not end"
