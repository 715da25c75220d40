"""Steps that must not be interrupted. :func:`undisturbed` keeps signal handlers out, :func:`importing` also
keeps forks out of imports, and :func:`only_in` guards files that only one process may write."""

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
_held: list[bool] = []  # held by forks that are under way
_MOST_WAIT = 5.0  # seconds, in case the import waits for a lock of the forking thread


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signal handlers wait until the end of the block. Use it only for work of a fraction of a second.

    An exception of a handler, such as KeyboardInterrupt at Ctrl-C, would leave half a module behind in the
    middle of an import (see :func:`importing`), and NumPy cannot be imported twice. A process that a handler
    forks while a thread starts would wait for ever for that thread, which exists only in the parent.

    >>> with undisturbed():
    ...     half_done = True
    """
    arrived: list[int] = []
    handlers = {}

    def wait(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    try:
        with contextlib.suppress(ValueError):  # handlers run in the main thread only
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

    Python locks a module while it is imported. A process that is forked meanwhile would wait for ever for
    that lock, because the thread that holds it exists only in the parent.

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
    """A step of writing ``what``, which ``process`` has begun; signal handlers wait as in
    :func:`undisturbed`.

    A process that a signal handler forks goes on where its parent was interrupted, between two steps, with
    the parent's files. In such a process this raises :class:`CancelledError`, before it changes anything.

    >>> with only_in(os.getpid(), "a folder"):
    ...     pass
    """
    with undisturbed():
        if os.getpid() != process:
            raise CancelledError(f"{what}: a signal handler forked the process that writes it")
        yield
