"""Protects steps that must not be interrupted. :func:`undisturbed` delays signal handlers, :func:`importing`
also delays forks during imports, and :func:`only_in` guards files that only one process may write."""

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
_held: list[bool] = []  # for each fork that is in progress, whether it took the lock ``_imports``
_MOST_WAIT = 5.0  # the most seconds that a fork waits: the import may wait for a lock of the forking thread


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signal handlers wait until the end of the block. Use it only for work of a fraction of a second.

    If a handler raised an exception such as KeyboardInterrupt during an import (see :func:`importing`), the
    module would be left half imported, and NumPy cannot be imported again. If a handler forked the process
    while a thread starts, the child would wait forever for that thread, which exists only in the parent.

    >>> with undisturbed():
    ...     half_done = True
    """
    arrived: list[int] = []
    handlers = {}

    def wait(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    try:
        with contextlib.suppress(ValueError):  # handlers run only in the main thread
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
    """Like :func:`undisturbed`, for an import inside a function. A fork in another thread waits until the
    import ends.

    Python locks a module while it is imported. A process that is forked meanwhile would wait forever for
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
    """Protects one step of writing the file or folder ``what``. ``process`` is the id of the process that
    began to write it. Signal handlers wait as in :func:`undisturbed`.

    If a signal handler forks the process between two steps, the child would go on writing the parent's files.
    So in the child this raises :class:`CancelledError` before the block runs.

    >>> with only_in(os.getpid(), "a folder"):
    ...     pass
    """
    with undisturbed():
        if os.getpid() != process:
            raise CancelledError(f"{what}: a signal handler forked the process that writes it")
        yield
