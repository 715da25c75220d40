"""The asynchronous interface of a model over its threads, for tests of the server until the engine has it."""

from __future__ import annotations

import asyncio
from typing import Any

import gemlet


class AsyncTextStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncTextStream:
        return self

    async def __anext__(self) -> Any:
        chunk = await asyncio.to_thread(next, self._stream, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def cancel(self) -> None:
        self._stream.cancel()

    async def aclose(self) -> None:
        await asyncio.to_thread(self._stream.close)

    @property
    def result(self) -> Any:
        return self._stream.result


def install() -> None:
    """Gives :class:`gemlet.Model` what it lacks."""
    if hasattr(gemlet.Model, "astream"):
        return

    def astream(self: Any, *arguments: Any, timeout: float | None = None, **options: Any) -> AsyncTextStream:
        return AsyncTextStream(self.stream(*arguments, **options))

    def astream_chat(self: Any, *arguments: Any, timeout: float | None = None, **options: Any) -> Any:
        return AsyncTextStream(self.stream_chat(*arguments, **options))

    gemlet.Model.astream = astream
    gemlet.Model.astream_chat = astream_chat
