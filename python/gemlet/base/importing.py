"""Importing modules late, at their first use: :func:`importing`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["importing"]


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Within, signal handlers wait until the end. What one raises, such as KeyboardInterrupt at Ctrl-C, would
    leave half a module behind, and NumPy cannot be imported a second time.

    >>> with importing():
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
