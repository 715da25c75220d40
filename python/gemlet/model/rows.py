"""What a request gets besides tokens, as it comes: rows of logits, or embeddings."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gemlet import _core
from gemlet.errors import CancelledError
from gemlet.model.resident import Resident

__all__ = ["rows_of"]

_AHEAD = 2 * _core.PASS_TEXTS  # texts that the engine has at a time


def rows_of(
    resident: Resident,
    texts: Sequence[ArrayLike],
    adapter: _core.Adapter | None,
    wanted: Literal["logits", "embedding"],
    first_row: int = 0,
    cache_salt: int = 0,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The index of a text and float32 ``[n, width]``, text by text: the next rows of its logits, from number
    ``first_row`` on, or its embedding. With a first row, the first text is read before the others, which then
    find what they have in common with it.

    Raises :class:`CancelledError` where another thread closed the model meanwhile.
    """
    engine, news = resident.engine(), _core.News()
    submitted: deque[_core.Request] = deque()
    try:
        for index in range(len(texts)):
            ahead = 1 if first_row > 0 and index == 0 else _AHEAD
            while len(submitted) < ahead and index + len(submitted) < len(texts):
                ids = np.asarray(texts[index + len(submitted)], np.int32)
                request = engine.submit(
                    ids,
                    news=news,
                    wanted=wanted,
                    adapter=adapter,
                    first_row=first_row,
                    cache_salt=cache_salt,
                )
                submitted.append(request)
            reason = None
            while reason is None:
                seen = news.value
                _, reason, rows = submitted[0].take()
                if len(rows):
                    yield index, rows
                elif reason is None:
                    engine.wait(news, seen)
            if reason == "cancelled":
                raise CancelledError(f"the model from {resident.name} was closed meanwhile; load it again")
            submitted.popleft()
    finally:
        for request in submitted:
            request.cancel()
