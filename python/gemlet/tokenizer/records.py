"""Long rows of records of one regular layout, found at once instead of one after the other.

Where a record ends is known only after its beginning has been read, so a file of them has to be walked. But
where one *could* begin is seen without walking: NumPy lists those places and the ends they would have, and
the walk is then a comparison of each end with the next beginning.
"""

from __future__ import annotations

from bisect import bisect_left

from gemlet.base.arrays import NDArray, np

__all__ = ["Runs"]


class Runs:
    """Places where a record could be: ``begins``, rising, and ``ends``, one behind the last byte.

    >>> runs = Runs(np.array([0, 4, 5, 9]), np.array([4, 9, 7, 12]))
    >>> runs.at(4), runs.at(9), runs.at(1)
    (slice(1, 2, None), slice(3, 4, None), slice(0, 0, None))
    """

    def __init__(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self.begins: list[int] = begins.tolist()
        self.ends: list[int] = ends.tolist()
        self._last: list[int] = [*np.flatnonzero(ends[:-1] != begins[1:]).tolist(), len(begins) - 1]

    def at(self, begin: int) -> slice:
        """Which of the records follow one another from ``begin`` on without a gap; none if none begins there.
        A later call says how it goes on."""
        first = bisect_left(self.begins, begin)
        if first == len(self.begins) or self.begins[first] != begin:
            return slice(0, 0)
        return slice(first, self._last[bisect_left(self._last, first)] + 1)
