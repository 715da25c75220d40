"""Finds long runs of records with a regular layout in one step, instead of one record after the other.

The end of a record is known only after its beginning has been read, so normally a file is read record by
record. But NumPy can list all places at which a record *could* begin, and the ends that such records would
have. Then only each end has to be compared with the next beginning.
"""

from __future__ import annotations

from bisect import bisect_left

from gemlet.base.arrays import NDArray, np

__all__ = ["Runs"]


class Runs:
    """Places at which a record could be. ``begins`` are in rising order; each of ``ends`` is the position
    after the record's last byte.

    >>> runs = Runs(np.array([0, 4, 5, 9]), np.array([4, 9, 7, 12]))
    >>> runs.at(4), runs.at(9), runs.at(1)
    (slice(1, 2, None), slice(3, 4, None), slice(0, 0, None))
    """

    def __init__(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self.begins: list[int] = begins.tolist()
        self.ends: list[int] = ends.tolist()
        self._last: list[int] = [*np.flatnonzero(ends[:-1] != begins[1:]).tolist(), len(begins) - 1]

    def at(self, begin: int) -> slice:
        """The records that follow one another without a gap, from the one that begins at ``begin``; an empty
        slice if no record begins there. More records may follow: call this method
        again with the end of the last record."""
        first = bisect_left(self.begins, begin)
        if first == len(self.begins) or self.begins[first] != begin:
            return slice(0, 0)
        return slice(first, self._last[bisect_left(self._last, first)] + 1)
