"""Keeping signal handlers out of what must not be left in the middle: :func:`undisturbed`, and out of files
that only one process may write: :func:`only_in`."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from gemlet.errors import CancelledError

__all__ = ["only_in", "undisturbed"]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within, signal handlers wait until the end. For what takes a fraction of a second.

    What a handler raises, such as KeyboardInterrupt at Ctrl-C, would leave half a module behind in the middle
    of an import, and NumPy cannot be imported a second time. A process that a handler forks while a thread
    starts would wait for ever for the thread, which is not in it.

    >>> with undisturbed():
    ...     import decimal
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
