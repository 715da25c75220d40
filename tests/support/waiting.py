"""Waiting for another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
PATIENCE = 120.0  # seconds; far more than any of these events takes on any machine


def until(condition: Callable[[], Found], what: str = "it does not happen") -> Found:
    """Returns the result of ``condition`` as soon as it is true. If that takes too long, the test fails with
    ``what``."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.005)
    return found
