"""Text as it is written, for programs with an event loop: :class:`AsyncTextStream`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

from gemlet.generation.result import Chunk, Generation
from gemlet.generation.stream import TextStream

if TYPE_CHECKING:
    import asyncio

__all__ = ["AsyncTextStream", "run_async"]


class AsyncTextStream:
    """An asynchronous iterator of :class:`Chunk`; made by :meth:`gemlet.Model.astream`.

    It is a :class:`TextStream` that waits in the event loop, without another thread. The text ends when
    its reader stops (``aclose``, the end of ``async with``, a cancelled task); the engine stops at its next
    opportunity.

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
        self._process = os.getpid()
        self._waiting: list[asyncio.Future[None]] = []  # tasks that wait for news

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        try:
            while True:
                chunk, seen = self._stream._poll()
                if chunk is not None:
                    self._wake()  # another task may have waited for the end
                    return chunk
                await self._change(seen)
        except StopIteration:
            raise StopAsyncIteration from None
        except BaseException:  # asyncio.CancelledError, too
            self._stream.cancel()
            raise

    def __repr__(self) -> str:
        return repr(self._stream).replace("TextStream", "AsyncTextStream")

    async def _change(self, seen: int) -> None:
        """Waits in the event loop until the stream's news differ from ``seen``."""
        import asyncio

        news, loop = self._stream._news, asyncio.get_running_loop()
        if self._process != os.getpid():
            self._process = os.getpid()
            self._stream._resume(seen)
        if not self._waiting:
            news.clear()
            loop.add_reader(news.fileno(), self._wake)
        changed: asyncio.Future[None] = loop.create_future()
        self._waiting.append(changed)
        try:
            if news.value == seen:
                await changed
        finally:
            if changed in self._waiting:
                self._waiting.remove(changed)
                if not self._waiting:
                    loop.remove_reader(news.fileno())

    def _wake(self) -> None:
        """Wakes every task that waits."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            waiting[0].get_loop().remove_reader(self._stream._news.fileno())
            for changed in waiting:
                if not changed.done():
                    changed.set_result(None)

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def has_chunk(self) -> bool:
        """True if the next chunk can be had without waiting. (If False, it may be there too.) Programs that
        pass chunks on can send several together.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.astream("The door").has_chunk
        False
        """
        return self._stream._has_chunk

    @property
    def joins_tokens(self) -> bool:
        """Whether a chunk has all tokens that are there; see :class:`TextStream`. It can be set.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     stream = model.astream("The door")
        ...     stream.joins_tokens = True
        """
        return self._stream.joins_tokens

    @joins_tokens.setter
    def joins_tokens(self, joins: bool) -> None:
        self._stream.joins_tokens = joins

    def cancel(self, index: int | None = None) -> None:
        """Asks the stream to end, or one of its texts; returns at once. See :meth:`TextStream.cancel`.

        >>> import asyncio, gemlet
        >>> async def write(model):
        ...     stream = model.astream("The door opened", max_tokens=50)
        ...     async for chunk in stream:
        ...         stream.cancel()
        ...     return chunk.finish_reason
        >>> with gemlet.load() as model:
        ...     asyncio.run(write(model))
        'cancelled'
        """
        self._stream.cancel(index)

    async def aclose(self) -> None:
        """Cancels the stream if it has not ended, and waits until its resources are free.

        >>> import asyncio, gemlet
        >>> async def write(model):
        ...     stream = model.astream("The door opened")
        ...     first = await anext(stream)
        ...     await stream.aclose()
        ...     return stream.result.text == first.text
        >>> with gemlet.load() as model:
        ...     asyncio.run(write(model))
        True
        """
        self._stream.cancel()
        while (seen := self._stream._poll_closed()) is not None:
            await self._change(seen)
        self._wake()

    @property
    def prompt_ids(self) -> list[list[int]]:
        """The tokens of the prompt of each text; see :attr:`TextStream.prompt_ids`."""
        return self._stream.prompt_ids

    @property
    def result(self) -> Generation:
        """The whole :class:`Generation`, once the stream has ended; see :attr:`TextStream.result`."""
        return self._stream.result

    @property
    def results(self) -> list[Generation]:
        """The result of each prompt, once the stream has ended; see :attr:`TextStream.results`."""
        return self._stream.results


async def run_async(stream: AsyncTextStream) -> list[Generation]:
    """Everything that the stream gives, as one result."""
    async with stream:
        async for _ in stream:
            pass
    return stream.results
