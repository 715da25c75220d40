"""Waits for events in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
PATIENCE = 120.0  # seconds, far more than any event in these tests takes


def until(condition: Callable[[], Found], what: str = "the expected event did not happen") -> Found:
    """Calls ``condition`` until its result is true, and returns the result. If this takes longer than
    PATIENCE, the test fails with the message ``what``."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.005)
    return found
