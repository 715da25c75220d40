"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
PATIENCE = 120.0  # seconds; far more than anything takes that is waited for, on any machine


def until(condition: Callable[[], Found], what: str = "it does not happen") -> Found:
    """What ``condition`` returns, as soon as that is true. If it takes too long, the test fails and says
    ``what``."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.005)
    return found
