"""exits.py WORK END: the process ends by END while threads that it does not wait for do WORK.

What it prints last is whether the end was reached; that it was a clean one is what the exit code says.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import random
import signal
import sys
import threading
import time

import gemlet
from support.programs import works


class Owner:
    """Closes the model when it goes, which is while Python ends."""

    def __init__(self, model: gemlet.Model) -> None:
        self.model = model

    def __del__(self) -> None:
        self.model.close()


def main() -> None:
    work, end = works.WORKS[sys.argv[1]], sys.argv[2]
    began = threading.Semaphore(0)

    def repeat() -> None:
        while True:
            try:
                work()
            except gemlet.GemletError:  # closed, or cancelled
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
        globals()["owner"] = Owner(works.model)
    if end == "slow":  # the C library's exit takes a while after Python's
        libc = ctypes.CDLL(None)
        libc.on_exit(libc.usleep, 0)
        sys.exit(255)
    if end == "interrupt":  # while Python waits for the threads, which are no daemons
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()


main()
