"""A text while an engine continues it: :class:`RunningText`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.chat.reply import Content, ReplyEvent
from gemlet.errors import GemletError
from gemlet.generation.answer import Prepared, Timing
from gemlet.generation.result import Chunk, FinishReason, Generation

__all__ = ["Engine", "RunningText"]


class _Request(Protocol):
    """What a text needs of a :class:`_core.Request`."""

    @property
    def cached_tokens(self) -> int: ...
    @property
    def read_tokens(self) -> int: ...
    @property
    def times(self) -> tuple[float, float, float, int]: ...
    def take(self) -> tuple[list[int], str | None, NDArray[np.float32]]: ...
    def cancel(self) -> None: ...


class Engine(Protocol):
    """What a stream needs of a :class:`_core.Engine`."""

    def submit(
        self,
        prompt: NDArray[np.int32],
        *,
        sampler: _core.Sampler,
        news: _core.News,
        max_tokens: int,
        end_ids: Sequence[int],
        adapter: _core.Adapter | None,
        timeout: float | None,
        most_unread: int,
    ) -> _Request: ...
    def wait(self, news: _core.News, seen: int, patience: float | None = None) -> None: ...


class RunningText:
    """One text of a stream. Its tokens wait here until somebody asks for the next chunk.

    Attributes:
        result: the whole generation, once the text has ended.
        prompt_ids: int32 ``[n]``.
        is_over: whether the engine has given back what the text took.
    """

    def __init__(self, prepared: Prepared, index: int, context_length: int) -> None:
        self.answer = prepared.answer
        self.result: Generation | None = None
        self.is_over = True
        self.prompt_ids = prepared.ids
        self._prepared: Prepared | None = prepared  # until it begins
        self._read_tokens = 0
        self._index = index
        self._context_length = context_length
        self._request: _Request | None = None
        self._ids: deque[int] = deque()  # not handed out yet
        self._reason: FinishReason | None = None  # why none will follow these
        self._error: GemletError | None = None  # or what is to be raised after them

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self.prompt_ids)

    @property
    def read_tokens(self) -> int:
        """How many of them have been read."""
        if self._request is not None:
            self._read_tokens = self._request.read_tokens
        return self._read_tokens

    def begin(self, engine: Engine, news: _core.News, ahead: int) -> None:
        """Asks the engine for the text, of which it writes ``ahead`` tokens more than were taken."""
        prepared, config = self._prepared, self.answer.config
        assert prepared is not None
        self._request = engine.submit(
            prepared.ids,
            sampler=prepared.sampler,
            news=news,
            max_tokens=config.max_tokens,
            end_ids=sorted(self.answer.end_ids),
            adapter=prepared.adapter,
            timeout=prepared.timeout,
            most_unread=ahead,
        )
        self._prepared = None  # and with it the adapter
        self.is_over = False

    def read(self) -> None:
        """Takes what the engine has for this text. Does not wait."""
        if self.is_over or self._request is None:
            return
        try:
            ids, reason, _ = self._request.take()
        except GemletError as error:
            self._error, self.is_over = error, True
        else:
            self._ids.extend(ids)
            if reason is not None:
                self._reason, self.is_over = cast(FinishReason, reason), True
        self._forget()

    def next_chunk(self) -> Chunk | None:
        """The next chunk, if there is one. The last one ends the text."""
        if self.result is not None:
            return None
        if self._ids:
            token_id = self._ids.popleft()
            events, reason = self.answer.push(token_id)
            written = len(self.answer.token_ids)
            if reason is None and self.prompt_tokens + written > self._context_length:
                reason = "context"
            if reason is None:
                return self._chunk(events, [token_id], None)
            return self.end(reason, events, [token_id])
        if self._error is not None:
            raise self._error
        if self._reason is None:
            return None
        self.answer.ended = self._reason == "stop"
        return self.end(self._reason)

    def end(
        self, reason: FinishReason, events: Sequence[ReplyEvent] = (), token_ids: Sequence[int] = ()
    ) -> Chunk:
        """Ends the text: its last chunk is ``events`` (already recorded) and what was held back."""
        timing = Timing()
        if self._request is not None:
            times = self._request.times
            _, timing.prefill_seconds, timing.decode_seconds, timing.decode_steps, timing.decode_tokens = times
            timing.cached_tokens = self._request.cached_tokens
        held_back, self.result = self.answer.end(reason, timing)
        self.cancel()
        self._prepared = None
        self._forget()
        return self._chunk([*events, *held_back], token_ids, self.result.finish_reason)

    def _forget(self) -> None:
        """Lets go of the request, and with it of the adapter, once both sides have ended it."""
        if self.is_over and self.result is not None and self._request is not None:
            self._read_tokens = self._request.read_tokens
            self._request = None

    def cancel(self) -> None:
        """The engine may stop. Does not wait."""
        if self._request is not None:
            self._request.cancel()

    def _chunk(
        self, events: list[ReplyEvent], token_ids: Sequence[int], reason: FinishReason | None
    ) -> Chunk:
        text = "".join(event.text for event in events if isinstance(event, Content))
        return Chunk(text, list(token_ids), reason, events, self._index)
