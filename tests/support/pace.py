"""Limits of time that also hold on a slow or busy machine.

A limit is in seconds of processor time of one machine, the reference. Other programs do not count for this
time, but they slow the process down, and so does a slower machine. A fixed piece of work shows how much. The
measured work may be slowed down more, so a limit is multiplied by a factor. A cost that grows with a power of
the input is far above it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_ROOM = 3  # a test fails if it takes this many times the limit
_REFERENCE = 0.0041  # seconds that the piece of work takes on an AMD EPYC (Zen 3) at rest


def slowness() -> float:
    """The factor by which this machine is now slower than the reference, at least 1: the worst of a few
    moments."""
    return max(1.0, *(_piece_of_work() / _REFERENCE for _ in range(9)))


def _piece_of_work() -> float:
    """The processor time to make objects, look them up and copy memory."""
    started = time.thread_time()
    found = {str(number): [number] for number in range(10_000)}
    assert sum(found[name][0] for name in found) == 49_995_000
    block = bytearray(1 << 20)
    for _ in range(4):
        block = bytearray(block)
    return time.thread_time() - started


def in_time(taken: float, seconds: float) -> bool:
    """Whether ``taken``, which was measured just now, is at most ``seconds`` of the reference, times the
    factor."""
    limit = _ROOM * seconds
    return taken <= limit or taken <= limit * slowness()


def assert_quick(work: Callable[[], object], seconds: float) -> None:
    """Asserts that ``work`` takes at most ``seconds`` of processor time of the reference. It gets three
    tries, because a machine is not equally slow at all times."""
    seen = []
    for _ in range(3):
        started = time.process_time()
        work()
        seen.append(time.process_time() - started)
        if in_time(seen[-1], seconds):
            return
    raise AssertionError(f"expected at most {seconds} s, took {seen} s; the machine: {slowness():.1f}")
