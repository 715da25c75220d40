"""Keeping signal handlers out of what must not be left in the middle: :func:`undisturbed`, forks out of
imports: :func:`importing`, and both out of files that only one process may write: :func:`only_in`."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from gemlet.errors import CancelledError

__all__ = ["importing", "only_in", "undisturbed"]

_imports = threading.RLock()
_held: list[bool] = []  # by forks that are under way
_MOST_WAIT = 5.0  # seconds, in case that the import waits for something that the forking thread has


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within, signal handlers wait until the end. For what takes a fraction of a second.

    What a handler raises, such as KeyboardInterrupt at Ctrl-C, would leave half a module behind in the middle
    of an import (see :func:`importing`), and NumPy cannot be imported a second time. A process that a handler
    forks while a thread starts would wait for ever for the thread, which is not in it.

    >>> with undisturbed():
    ...     half_done = True
    """
    arrived: list[int] = []
    handlers = {}

    def wait(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    try:
        with contextlib.suppress(ValueError):  # not the main thread, where handlers run
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    signal.signal(number, wait)
                    handlers[number] = handler
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is wait:
                signal.signal(number, handler)
        for again in arrived:
            signal.raise_signal(again)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """:func:`undisturbed`, for an import that comes late; a fork in another thread waits for its end.

    Python locks a module while it is imported. In a process that is forked meanwhile, whoever needs the
    module would wait for ever for a thread that is not in it.

    >>> with importing():
    ...     import fractions
    """
    with undisturbed(), _imports:
        yield


def _before_fork() -> None:
    _held.append(_imports.acquire(timeout=_MOST_WAIT))


def _after_fork() -> None:
    if _held.pop():
        _imports.release()


def _in_child() -> None:
    global _imports
    if _held.pop():
        _imports.release()
    else:
        _imports = threading.RLock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


@contextlib.contextmanager
def only_in(process: int, what: str) -> Iterator[None]:
    """A step of writing ``what``, which ``process`` has begun; :func:`undisturbed`.

    A process that a signal handler forks goes on where its parent was interrupted, between two steps, and has
    the parent's files. Here it raises :class:`CancelledError`, before it changes anything.

    >>> with only_in(os.getpid(), "a folder"):
    ...     pass
    """
    with undisturbed():
        if os.getpid() != process:
            raise CancelledError(f"{what}: a signal handler forked the process that writes it")
        yield
