"""Text as it is written, for programs with an event loop: :class:`AsyncTextStream`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from gemlet import _core
from gemlet.generation.result import Chunk, Generation
from gemlet.generation.stream import TextStream

__all__ = ["AsyncTextStream", "run_async"]


class AsyncTextStream:
    """An asynchronous iterator of :class:`Chunk`; made by :meth:`gemlet.Model.astream`.

    It is a :class:`TextStream` that waits in the event loop, without a thread of its own. Whoever stops
    reading (``aclose``, the end of ``async with``, a task that is cancelled) ends the text; the engine stops
    at its next opportunity.

    >>> import asyncio, gemlet
    >>> async def write(model):
    ...     async with model.astream("The door opened", max_tokens=3) as stream:
    ...         return [chunk.finish_reason async for chunk in stream]
    >>> with gemlet.load() as model:
    ...     asyncio.run(write(model))
    [None, None, 'length']
    """

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        try:
            while True:
                chunk, seen = self._stream._poll()
                if chunk is not None:
                    return chunk
                await _change_of(self._stream._news, seen)
        except StopIteration:
            raise StopAsyncIteration from None
        except BaseException:  # asyncio.CancelledError, too
            self._stream.cancel()
            raise

    def __repr__(self) -> str:
        return repr(self._stream).replace("TextStream", "AsyncTextStream")

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def cancel(self) -> None:
        """Asks the stream to end; returns at once. See :meth:`TextStream.cancel`."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """Cancels the stream if it has not ended, and waits until what it took is given back."""
        self._stream.cancel()
        while (seen := self._stream._poll_closed()) is not None:
            await _change_of(self._stream._news, seen)

    @property
    def result(self) -> Generation:
        """The whole :class:`Generation`, once the stream has ended; see :attr:`TextStream.result`."""
        return self._stream.result

    @property
    def results(self) -> list[Generation]:
        """That of each prompt, once the stream has ended; see :attr:`TextStream.results`."""
        return self._stream.results


async def _change_of(news: _core.News, seen: int) -> None:
    """Waits in the event loop until the news differ from ``seen``."""
    loop = asyncio.get_running_loop()
    while news.value == seen:
        news.clear()
        if news.value != seen:
            return
        changed = loop.create_future()
        loop.add_reader(news.fileno(), _set, changed)
        try:
            await changed
        finally:
            loop.remove_reader(news.fileno())


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def run_async(stream: AsyncTextStream) -> list[Generation]:
    """What the stream gives in all."""
    async with stream:
        async for _ in stream:
            pass
    return stream.results
