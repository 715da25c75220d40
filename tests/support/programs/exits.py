"""Functions that product/test_exits.py runs in separate processes."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType

import gemlet
from support.programs.works import Works

late: list[Owner] = []


class Owner:
    """Closes its model in ``__del__``, which Python calls while it ends."""

    def __init__(self, model: gemlet.Model) -> None:
        self.model = model

    def __del__(self) -> None:
        self.model.close()


def end_while_busy(name: str, end: str) -> None:
    """Ends the process in the way ``end`` while daemon threads do the work ``name``."""
    works = Works()
    work = getattr(works, name)
    began = threading.Semaphore(0)

    def repeat() -> None:
        while True:
            try:
                work()
            except gemlet.GemletError:  # the model was closed, or the work was cancelled
                time.sleep(0.001)
            began.release()

    for _ in range(3):
        threading.Thread(target=repeat, daemon=end != "interrupt").start()
    for _ in range(3):
        began.acquire()
    time.sleep(random.uniform(0, 0.03))
    if end == "exit":
        sys.exit(3)
    if end == "raise":
        raise RuntimeError("on purpose")
    if end == "os-exit":
        os._exit(0)
    if end == "close":
        works.model.close()
    if end == "atexit-close":
        atexit.register(works.model.close)
    if end == "late-close":
        late.append(Owner(works.model))
    if end == "slow":  # an exit handler of the C library makes the end of the process slow
        libc = ctypes.CDLL(None)
        for _ in range(200):
            libc.on_exit(libc.usleep, 0)
        sys.exit(255)
    if end == "interrupt":  # Ctrl-C while Python waits for the threads, which are no daemons here
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()


def end_server(end: str) -> None:
    """Ends the process in the way ``end`` while an HTTP server answers several requests, each in its own
    thread.

    As in the standard library, these threads are daemons, so Python does not wait for them.
    """
    model = gemlet.load(threads=2, weights="q8")
    began = threading.Semaphore(0)
    body = json.dumps([{"role": "user", "content": "Who is there? " * 20}]).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            # The client may have disconnected, and the model may be closed.
            with contextlib.suppress(OSError, gemlet.GemletError):
                for chunk in model.stream_chat(messages, max_tokens=500, ignore_eos=True):
                    self.wfile.write(chunk.text.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_address[1]}/"

    def ask() -> None:
        with contextlib.suppress(OSError):  # the server has ended
            while True:
                with urllib.request.urlopen(address, body, timeout=20) as reply:
                    began.release()
                    reply.read()

    def interrupt() -> None:
        for _ in range(8):
            began.acquire()
        os.kill(os.getpid(), signal.SIGTERM if end.startswith("sigterm") else signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        if end == "sigterm-close":
            model.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, handle)
    for target in (ask, ask, ask, ask, interrupt):
        threading.Thread(target=target, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    if end == "close":
        model.close()
        server.server_close()
