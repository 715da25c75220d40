"""Functions that loading/test_load.py runs in separate processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import gemlet
from support.processes import resident


class EnoughError(Exception):
    """The exception that the caller's ``progress`` function raises to cancel loading."""


def held() -> tuple[int, int]:
    """The numbers of threads and open files of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def cancel_loading(folder: Path, cache: bool) -> None:
    """Cancels loading four times: three times by an exception of ``progress``, and once by Ctrl-C."""
    during: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        during.append(held())
        if len(during) == 3:
            assert done < total
            raise EnoughError  # gemlet must not keep this error, because its frames keep the model in memory

    def interrupt(done: int, total: int) -> None:
        during.append(held())
        if len(during) == 2:
            signal.setitimer(signal.ITIMER_REAL, 0.002)  # the signal arrives while the next part is packed

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    before, memory = held(), 0.0
    for attempt in range(4):
        if attempt == 1:  # the first attempt imports modules, which stay in memory
            before, memory = held(), resident()
        during.clear()
        progress = interrupt if attempt == 3 else stop
        expected = KeyboardInterrupt if attempt == 3 else EnoughError
        try:
            gemlet.load(folder, weights="q8", threads=2, cache=cache, progress=progress)
        except expected:
            pass
        else:
            raise AssertionError("loading was not cancelled")
    assert held() == before < max(during), (held(), before, during)
    assert resident() < memory + 8, (resident(), memory)
