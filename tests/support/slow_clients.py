"""Simulates many slow, stuck or rude clients of a server at a time, from one thread."""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from support.bodies import QUESTION


def head(path: str, length: int, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n".encode()


def connect(port: int, *, buffer: int | None = None) -> socket.socket:
    """Opens a connection. ``buffer`` limits the bytes that the system receives before the client reads
    them."""
    made = socket.socket()
    if buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.settimeout(30)
    made.connect(("127.0.0.1", port))
    return made


@contextmanager
def slow_clients(port: int, count: int) -> Iterator[None]:
    """Runs ``count`` clients during the ``with`` block. Of ten clients, five send nothing or half of the
    headers. Four send one byte of their body every second. One requests a long stream and does not read
    it."""
    wanted = {"prompt": "The", "max_tokens": 300, "logprobs": 20, "ignore_eos": True, "stream": True}
    body = json.dumps(wanted).encode()
    whole = head("/v1/completions", len(body)) + body
    clients: list[socket.socket] = []
    trickling: list[socket.socket] = []
    try:
        for index in range(count):
            kind = index % 10
            client = connect(port, buffer=2048 if kind == 9 else None)
            clients.append(client)
            if kind < 5:
                client.sendall(whole[: 20 * (index % 2)])
            elif kind < 9:
                client.sendall(head("/v1/completions", 10_000))
                trickling.append(client)
            else:
                client.sendall(whole)
        ended = Event()

        def trickle() -> None:
            while not ended.wait(1):
                for client in trickling:
                    with contextlib.suppress(OSError):
                        client.send(b" ")

        thread = Thread(target=trickle)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
    finally:
        for client in clients:
            client.close()


def rude(port: int, whole: bytes, pick: random.Random) -> int | None:
    """Sends a whole request or a part of it. Then it reads the answer or a part of it, or disconnects at
    once. Returns the status of the answer, or None if it read no status."""
    part = whole[: pick.randrange(1, len(whole))] if pick.random() < 0.4 else whole
    with connect(port) as client, contextlib.suppress(OSError):
        client.sendall(part)
        if pick.random() < 0.3:
            client.shutdown(socket.SHUT_WR)
        elif len(part) < len(whole) or pick.random() < 0.3:
            time.sleep(pick.random() * 0.01)
            return None
        answer = client.recv(1 << 16)
        return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None
    return None


def flood(port: int, count: int, headers: str = "") -> int:
    """Opens ``count`` connections at once and sends a whole request on each. Disconnects when half of the
    requests have answers. Returns the number of answers."""
    body = json.dumps({"messages": QUESTION, "max_tokens": 2}).encode()
    answered = 0
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(connect(port))
            client.sendall(head("/v1/chat/completions", len(body), headers) + body)
            selector.register(client, selectors.EVENT_READ)
        end = time.monotonic() + 60
        while answered < count // 2 and time.monotonic() < end:
            for key, _ in selector.select(1):
                with contextlib.suppress(OSError):  # the server closed the connection because it seemed idle
                    answered += bool(key.fileobj.recv(1 << 16))  # type: ignore[union-attr]
                selector.unregister(key.fileobj)
    return answered
