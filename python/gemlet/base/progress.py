"""Reports the progress of a long operation: with a line on terminals and in notebooks, or with a callback."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gemlet.base.sizes import size_text
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError

__all__ = ["Progress", "check_progress", "in_notebook", "reporting"]

# The argument ``progress``: None (a line on terminals and in notebooks), True, False, or a function of (bytes
# done, bytes in total).
Progress = bool | Callable[[int, int], object] | None

_DELAY = 0.5  # seconds before the line appears; a shorter operation shows nothing
_PAUSE = 0.1  # seconds between two changes of the line


def check_progress(progress: Progress) -> None:
    """Raises :class:`InvalidRequestError` if ``progress`` has another type than :data:`Progress`."""
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise InvalidRequestError(f"progress is {show(progress)}; expected None, True, False or a function")


def in_notebook() -> bool:
    """Whether this Python runs a Jupyter notebook."""
    return "ipykernel" in sys.modules


@contextmanager
def reporting(progress: Progress, title: str, total: int, unit: str = "B") -> Iterator[Callable[[int], None]]:
    """Yields a function that the operation calls after each step, with the amount of work in this step.
    ``total`` is the amount of the whole operation. If ``progress`` is a function and raises an exception, the
    exception ends the operation. ``unit`` is the unit on the line: "B" for bytes, or a word such as "tokens".

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
    shown = sys.stderr is not None and (sys.stderr.isatty() or in_notebook())
    if not (progress or (progress is None and shown)):
        yield lambda step: None
        return
    tqdm = _tqdm()
    if tqdm is None:
        line = _Line(title, total, unit)
        try:
            yield line.advance
        finally:
            line.close()
        return
    quiet = type("Bar", (tqdm,), {"monitor_interval": 0})  # tqdm's watching thread would outlive the bar
    size: dict[str, Any] = {"unit": unit if unit == "B" else f" {unit}", "unit_scale": unit == "B"}
    with quiet(total=total, desc=title, delay=_DELAY, leave=False, file=sys.stderr, **size) as bar:
        yield bar.update


class _Line:
    """A line on standard error that is overwritten again and again, and disappears at the end."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title = title
        self._total = max(1, total)
        self._unit = unit
        self._done = 0
        self._started = time.monotonic()
        self._next = self._started + _DELAY
        self._width = 0

    def advance(self, step: int) -> None:
        self._done += step
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PAUSE
        share = min(1.0, self._done / self._total)
        left = (now - self._started) * (1 - share) / max(share, 1e-9)
        text = f"{self._title}: {share:4.0%}, {self._amount(self._done)} of {self._amount(self._total)}"
        text += f", {left:.0f} s left" if self._done and left < 360_000 else ""
        self._show(text)

    def close(self) -> None:
        if self._width:
            self._show("")
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _amount(self, count: int) -> str:
        return size_text(count) if self._unit == "B" else f"{count} {self._unit}"

    def _show(self, text: str) -> None:
        import shutil

        text = text[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
