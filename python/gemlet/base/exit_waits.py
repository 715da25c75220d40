"""Makes Python's exit wait for calls into C++ extensions other than gemlet's core.

When Python exits, it ends every thread that returns from such a call. Before 3.14 it does so by unwinding the
thread's stack, and a C++ destructor on that stack then ends the process with SIGABRT. Only daemon threads can
be in the middle of a call at that time.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from gemlet.base.handlers import undisturbed

__all__ = ["call_apart", "exit_waits_for", "wait_for"]

T = TypeVar("T")

_NEEDED = sys.version_info < (3, 14)
_PATIENCE = 30.0  # the most seconds that the exit waits; calls take less, unless the machine is very busy
# Seconds that a call waits if it begins while Python exits. Python normally ends during this pause, and the
# call is never made. If an exit handler waits for the calling thread, the call is made after the pause.
_PAUSE = 0.5
_LOOK = 0.1  # seconds between two checks whether a thread is still running

_calls: deque[None] = deque()  # the calls that are running; only the length of the list matters
_is_exiting = False


def exit_waits_for(function: Callable[..., T], *arguments: object) -> T:
    """Returns ``function(*arguments)``. Python's exit waits until the call has ended.

    >>> exit_waits_for(len, "three")
    5
    """
    if not _NEEDED or threading.get_ident() == threading.main_thread().ident:
        return function(*arguments)
    _calls.append(None)  # before the check, so that either the exit sees this call or this call sees the exit
    try:
        if _is_exiting:
            _calls.pop()
            time.sleep(_PAUSE)
            _calls.append(None)
        return function(*arguments)
    finally:
        _calls.pop()


def wait_for(thread: threading.Thread) -> None:
    """Waits until the thread has ended. If a signal handler forks the process meanwhile, the thread counts as
    ended in the child."""
    while thread.is_alive():
        thread.join(_LOOK)


def call_apart(function: Callable[..., T], *arguments: object) -> T:
    """Calls ``function(*arguments)`` so that Ctrl-C can interrupt the wait: for the main thread, another
    thread makes the call. After Ctrl-C that thread goes on until the call ends, and its result is dropped.

    >>> call_apart(len, "three")
    5
    """
    if threading.get_ident() != threading.main_thread().ident:  # this thread gets no Ctrl-C
        return exit_waits_for(function, *arguments)
    results: list[T] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            results.append(exit_waits_for(function, *arguments))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="gemlet-call", daemon=True)
    try:
        with undisturbed():
            thread.start()
    except RuntimeError:  # no thread can be started
        return function(*arguments)
    wait_for(thread)
    if errors:
        raise errors[0]
    # A process that a signal handler forked does not have this thread, so there is no result.
    return results[0] if results else function(*arguments)


def _wait_for_calls() -> None:
    global _is_exiting
    _is_exiting = True
    until = time.monotonic() + _PATIENCE
    while _calls and time.monotonic() < until:
        time.sleep(0.001)


atexit.register(_wait_for_calls)
os.register_at_fork(after_in_child=_calls.clear)  # threads of the parent are not in a forked process
