"""Replaces the streams of a model by scripted streams, for tests of the server that need certain chunks,
pauses or errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from gemlet.chat import Content, ToolCallPiece
from gemlet.generation import Chunk, Generation


def chunk(*events: Any, reason: Any = None) -> Chunk:
    text = "".join(event.text for event in events if isinstance(event, Content))
    pieces = [event for event in events if isinstance(event, ToolCallPiece)]
    whole = [event for event in events if not isinstance(event, ToolCallPiece)]
    return Chunk(text, [7] if events else [], reason, whole, call_pieces=pieces)


class ScriptedStream:
    """An asynchronous stream of steps. A step is a chunk to give, a number of seconds to wait, or an error to
    raise.

    ``was_cancelled`` and ``was_closed`` are True after the server has cancelled or closed the stream.
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        self._steps = list(steps)
        self._tokens = 0
        self._reason: Any = None
        self.was_cancelled = False
        self.was_closed = False

    @property
    def has_chunk(self) -> bool:
        return bool(self._steps) and isinstance(self._steps[0], Chunk)

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Chunk:
        while self._steps and not self.was_cancelled:
            step = self._steps.pop(0)
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Chunk):
                self._tokens += len(step.token_ids)
                self._reason = step.finish_reason
                return step
            await asyncio.sleep(step)
        if self._reason is None:
            self._reason = "cancelled"
            return chunk(reason="cancelled")
        raise StopAsyncIteration

    def cancel(self, index: int | None = None) -> None:
        self.was_cancelled = True

    async def aclose(self) -> None:
        self.was_closed = True

    @property
    def results(self) -> list[Generation]:
        tokens, reason = [7] * self._tokens, self._reason or "cancelled"
        return [Generation("", tokens, reason, 5, self._tokens, 0.0, 0.0, 0, 1)]


@contextmanager
def saying(*steps: Any) -> Iterator[list[ScriptedStream]]:
    """During the ``with`` block, every request gets a stream of these steps. The list contains the streams
    that have begun."""
    begun: list[ScriptedStream] = []

    def begin(self: object) -> ScriptedStream:
        begun.append(ScriptedStream(steps))
        return begun[-1]

    with mock.patch("gemlet.server.ask.Ask.begin", begin):
        yield begun
