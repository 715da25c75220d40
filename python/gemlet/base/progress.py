"""How far a long operation has come: a bar on terminals, or a callback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gemlet.errors import InvalidRequestError, missing_extra

__all__ = ["Progress", "check_progress", "reporting"]

# The argument ``progress``: None (a bar on terminals), True, False, or a function of (bytes done, bytes in
# all).
Progress = bool | Callable[[int, int], object] | None

_DELAY = 0.5  # seconds: what is done by then shows no bar


def check_progress(progress: Progress) -> None:
    """Raises :class:`InvalidRequestError` for what is no ``progress`` argument, :class:`UnsupportedError` for
    True without tqdm."""
    if progress is True and _tqdm() is None:
        raise missing_extra("progress=True", "progress")
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise InvalidRequestError(f"progress is {progress!r}; expected None, True, False or a function")


@contextmanager
def reporting(progress: Progress, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives the function to call with the bytes of each step; what ``progress`` raises ends the operation.

    >>> seen = []
    >>> with reporting(lambda done, total: seen.append((done, total)), "packing", 30) as advance:
    ...     advance(10)
    ...     advance(20)
    >>> seen
    [(10, 30), (30, 30)]
    """
    if callable(progress):
        done = 0

        def advance(step: int) -> None:
            nonlocal done
            done += step
            progress(done, total)

        yield advance
        return
    terminal = sys.stderr is not None and sys.stderr.isatty()
    tqdm = _tqdm() if progress or (progress is None and terminal) else None
    if tqdm is None:
        yield lambda step: None
        return
    quiet = type("Bar", (tqdm,), {"monitor_interval": 0})  # tqdm's watching thread would outlive the bar
    with quiet(
        total=total, desc=title, unit="B", unit_scale=True, delay=_DELAY, leave=False, file=sys.stderr
    ) as bar:
        yield bar.update


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
