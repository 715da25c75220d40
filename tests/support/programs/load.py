"""Functions that loading/test_load.py runs in separate processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import gemlet
from support.processes import resident


class EnoughError(Exception):
    """The caller's ``progress`` raises this."""


def held() -> tuple[int, int]:
    """The numbers of threads and open files of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def cancel_loading(folder: Path, cache: bool) -> None:
    """``progress`` cancels three times, then Ctrl-C cancels once."""
    during: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        during.append(held())
        if len(during) == 3:
            assert done < total
            raise EnoughError  # the error must not be kept, because its frames hold the model

    def interrupt(done: int, total: int) -> None:
        during.append(held())
        if len(during) == 2:
            signal.setitimer(signal.ITIMER_REAL, 0.002)  # while the next part is packed

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    before, memory = held(), 0.0
    for attempt in range(4):
        if attempt == 1:  # the first attempt loaded modules, which stay
            before, memory = held(), resident()
        during.clear()
        progress = interrupt if attempt == 3 else stop
        expected = KeyboardInterrupt if attempt == 3 else EnoughError
        try:
            gemlet.load(folder, weights="q8", threads=2, cache=cache, progress=progress)
        except expected:
            pass
        else:
            raise AssertionError("not cancelled")
    assert held() == before < max(during), (held(), before, during)
    assert resident() < memory + 8, (resident(), memory)
