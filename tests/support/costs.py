"""Bounds of the memory and time that it takes to refuse a hostile file."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

import gemlet
from support.pace import assert_quick


def refused(read: Callable[[], object], size: int, message: str) -> None:
    """A typed error after at most 6 times ``size`` bytes of memory and a few seconds."""

    def work() -> None:
        tracemalloc.start()
        try:
            with pytest.raises(gemlet.GemletError, match=message):
                read()
            assert tracemalloc.get_traced_memory()[1] < 6 * size + (2 << 20)
        finally:
            tracemalloc.stop()

    assert_quick(work, 10)
