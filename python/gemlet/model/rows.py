"""What a request gets besides tokens, as it comes: rows of logits, or embeddings."""

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

_AHEAD = 2 * _core.PASS_TEXTS  # texts that the engine has at a time
Rows = tuple[int, NDArray["np.float32"]]
# What takes the place of tokens in a text, each with the number of the first of these.
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
    """The index of a text and float32 ``[n, width]``, text by text: the next rows of its logits, from number
    ``first_row`` on, or its embedding. With a first row, the first text is read before the others, which then
    find what they have in common with it. ``media`` are those of each text; none for no text at all.

    Raises :class:`CancelledError` where another thread closed the model meanwhile.
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
    """The embeddings that :func:`rows_of` gives, for programs with an event loop: no thread waits."""
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
    """Waits in the event loop until the news differ from ``seen``."""
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
    """Requests about texts, of which the engine has some at a time.

    Attributes:
        news: change when there may be something to take.
        is_over: all of them have ended.
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
        self._index = 0  # index of the text whose rows come now

    @property
    def is_over(self) -> bool:
        return self._index == len(self._texts)

    def take(self) -> Rows | None:
        """The next rows if they are there. None: there is news before there are more, or all is over."""
        while not self.is_over:
            self._submit()
            index = self._index
            _, reason, rows = self._submitted[0].take()
            if reason == "cancelled":
                raise CancelledError(f"the model from {self._name} was closed meanwhile; load it again")
            if reason is not None:  # the next one may be there already
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
