"""Takes rows of logits, or embeddings, from the engine as soon as they are ready: :func:`rows_of`."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Literal

from gemlet import _core
from gemlet.base.arrays import NDArray, np
from gemlet.errors import CancelledError
from gemlet.model.resident import Resident

__all__ = ["arows_of", "rows_of"]

_AHEAD = 2 * _core.PASS_TEXTS  # the most texts that the engine has at a time
Rows = tuple[int, NDArray["np.float32"]]  # the index of a text, and rows of its result
# The images and sounds of a text, each after the index of the first token that it replaces.
PlacedMedia = Sequence[tuple[int, _core.Media]]


def rows_of(
    resident: Resident,
    texts: Sequence[array[int]],
    adapter: _core.Adapter | None,
    wanted: Literal["logits", "embedding"],
    first_row: int = 0,
    cache_salt: int = 0,
    media: Sequence[PlacedMedia] = (),
) -> Iterator[Rows]:
    """Yields pairs, text by text: the index of a text, and an array float32 ``[n, width]``.

    If logits are wanted, the arrays of a text are the rows of its logits, beginning with row ``first_row``.
    Otherwise the array is the embedding of the text. With a ``first_row`` above 0, the first text is computed
    before the others, so that the others can reuse the keys and values of a common beginning. ``media`` has
    the images and sounds of each text. It is empty if no text has images or sounds.

    Raises :class:`CancelledError` if another thread closes the model in that time.
    """
    reading = _Reading(resident, texts, adapter, wanted, first_row, cache_salt, media)
    try:
        while not reading.is_over:
            seen = reading.news.value
            rows = reading.take()
            if rows is not None:
                yield rows
            elif not reading.is_over:
                reading.engine.wait(reading.news, seen)
    finally:
        reading.cancel()


async def arows_of(
    resident: Resident,
    texts: Sequence[array[int]],
    adapter: _core.Adapter | None,
    media: Sequence[PlacedMedia] = (),
) -> AsyncIterator[Rows]:
    """Yields embeddings as :func:`rows_of` does, for programs with an event loop. No thread waits for
    them."""
    reading = _Reading(resident, texts, adapter, "embedding", media=media, readable=True)
    try:
        while not reading.is_over:
            seen = reading.news.value
            rows = reading.take()
            if rows is not None:
                yield rows
            elif not reading.is_over:
                await _change(reading.news, seen)
    finally:
        reading.cancel()


async def _change(news: _core.News, seen: int) -> None:
    """Waits in the event loop until the value of ``news`` differs from ``seen``."""
    import asyncio

    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    news.clear()
    loop.add_reader(news.fileno(), changed.set)
    try:
        if news.value == seen:
            await changed.wait()
    finally:
        loop.remove_reader(news.fileno())


class _Reading:
    """The requests for the rows of all texts. The engine gets a few of these requests at a time.

    Attributes:
        news: an object whose value changes when there may be new rows to take.
        is_over: whether all requests have ended.
    """

    def __init__(
        self,
        resident: Resident,
        texts: Sequence[array[int]],
        adapter: _core.Adapter | None,
        wanted: Literal["logits", "embedding"],
        first_row: int = 0,
        cache_salt: int = 0,
        media: Sequence[PlacedMedia] = (),
        *,
        readable: bool = False,
    ) -> None:
        self.engine, self.news = resident.engine(), _core.News(readable=readable)
        self._name, self._texts, self._adapter = resident.name, texts, adapter
        self._wanted, self._first_row, self._cache_salt = wanted, first_row, cache_salt
        self._media = media
        self._submitted: deque[_core.Request] = deque()
        self._index = 0  # the index of the text whose rows are taken next

    @property
    def is_over(self) -> bool:
        return self._index == len(self._texts)

    def take(self) -> Rows | None:
        """The next rows, if they are ready. Otherwise None; then all requests have ended, or the value of
        ``news`` will change when there are more rows."""
        while not self.is_over:
            self._submit()
            index = self._index
            _, reason, rows = self._submitted[0].take()
            if reason == "cancelled":
                raise CancelledError(
                    f"the model from {self._name} was closed before the end of this call; load it again"
                )
            if reason is not None:  # the next text may have rows already
                self._submitted.popleft()
                self._index += 1
            if rows is not None:
                return index, rows
            if reason is None:
                break
        return None

    def cancel(self) -> None:
        for request in self._submitted:
            request.cancel()

    def _submit(self) -> None:
        ahead = 1 if self._first_row > 0 and self._index == 0 else _AHEAD
        while len(self._submitted) < ahead and self._index + len(self._submitted) < len(self._texts):
            text = self._index + len(self._submitted)
            request = self.engine.submit(
                self._texts[text],
                news=self.news,
                wanted=self._wanted,
                adapter=self._adapter,
                first_row=self._first_row,
                cache_salt=self._cache_salt,
                media=self._media[text] if self._media else (),
            )
            self._submitted.append(request)
