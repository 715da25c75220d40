"""Time limits for tests that also work on a slow or busy machine.

A limit is given in seconds of processor time on one machine, the reference. Processor time does not include
other programs, but they slow the process down, and so does a slower machine. A fixed piece of work measures
this slowness. The work of the test may be slowed down even more, so the limit is also multiplied by a
constant. Work whose cost grows with a power of its input still takes far more than this limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_ROOM = 3  # every limit is multiplied by this constant
_REFERENCE = 0.0041  # seconds that the piece of work takes on an AMD EPYC (Zen 3) at rest


def slowness() -> float:
    """The factor by which this machine is now slower than the reference: the largest of several measurements,
    at least 1."""
    return max(1.0, *(_piece_of_work() / _REFERENCE for _ in range(9)))


def _piece_of_work() -> float:
    """Makes objects, looks them up and copies memory. Returns the processor time that this took."""
    started = time.thread_time()
    found = {str(number): [number] for number in range(10_000)}
    assert sum(found[name][0] for name in found) == 49_995_000
    block = bytearray(1 << 20)
    for _ in range(4):
        block = bytearray(block)
    return time.thread_time() - started


def in_time(taken: float, seconds: float) -> bool:
    """True if ``taken`` is within the limit of ``seconds`` on the reference. ``taken`` must have been
    measured just before the call, because the slowness of a machine changes."""
    limit = _ROOM * seconds
    return taken <= limit or taken <= limit * slowness()


def assert_quick(work: Callable[[], object], seconds: float) -> None:
    """Asserts that ``work`` is within the limit of ``seconds`` of processor time on the reference. One of
    three tries has to be, because the slowness of a machine changes."""
    seen = []
    for _ in range(3):
        started = time.process_time()
        work()
        seen.append(time.process_time() - started)
        if in_time(seen[-1], seconds):
            return
    raise AssertionError(f"expected at most {seconds} s, took {seen} s; the machine: {slowness():.1f}")
