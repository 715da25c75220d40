"""A text while an engine continues it: :class:`RunningText`."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Protocol, cast

from gemlet import _core
from gemlet.base.arrays import NDArray, np
from gemlet.base.records import replace
from gemlet.chat.reply import Content, Reasoning, ReplyEvent, ToolCallPiece
from gemlet.errors import GemletError
from gemlet.generation.answer import Prepared, Timing
from gemlet.generation.masked import Masks
from gemlet.generation.result import Chunk, FinishReason, Generation, TokenLogprob

__all__ = ["Engine", "RunningText"]


class _Request(Protocol):
    """The part of :class:`_core.Request` that a text uses."""

    @property
    def cached_tokens(self) -> int: ...
    @property
    def read_tokens(self) -> int: ...
    @property
    def times(self) -> tuple[float, float, float, int, int]: ...
    @property
    def guesses(self) -> tuple[int, int]: ...
    @property
    def logprobs(self) -> list[tuple[float, list[tuple[int, float]]]]: ...
    def take(self) -> tuple[list[int], str | None, NDArray[np.float32] | None]: ...
    def cancel(self) -> None: ...
    @property
    def guessed(self) -> tuple[int, list[int]]: ...
    def set_mask(
        self, position: int, mask: NDArray[np.uint32] | None, behind: Sequence[int] = ...
    ) -> None: ...


class Engine(Protocol):
    """The part of :class:`_core.Engine` that a stream uses."""

    def submit(
        self,
        prompt: array[int],
        *,
        news: _core.News,
        wanted: str = "text",
        sampler: _core.Sampler | None = None,
        max_tokens: int = 1,
        end_ids: Sequence[int] = (),
        adapter: _core.Adapter | None = None,
        timeout: float | None = None,
        most_unread: int = 16,
        logprobs: int | None = None,
        cache_salt: int = 0,
        priority: int = 0,
        masked: bool = False,
        media: Sequence[tuple[int, _core.Media]] = (),
    ) -> _Request: ...
    def wait(self, news: _core.News, seen: int, patience: float | None = None) -> None: ...


class RunningText:
    """One text of a stream. Its tokens wait here until the reader asks for the next chunk. If another text
    reads the same prompt (``after``), this text begins after that, so that the engine need not read it again.
    If log probabilities of the prompt are wanted, the engine first gives the logits after each of its tokens.

    Attributes:
        result: the whole generation, once the text has ended.
        index: its place in the stream.
        is_over: whether the engine has given back what the text took.
    """

    def __init__(
        self, prepared: Prepared, index: int, context_length: int, after: RunningText | None = None
    ) -> None:
        self.answer = prepared.answer
        self.result: Generation | None = None
        self.is_over = True
        self._prepared = prepared
        self._masks = None if prepared.plan is None else Masks(prepared.plan)
        self.index = index
        self._context_length = context_length
        self._after = after
        self._read_tokens = 0
        self._begun: tuple[Engine, _core.News, int] | None = None
        self._began = 0.0
        self._scoring: _Request | None = None  # computes the log probabilities of the prompt
        self._request: _Request | None = None
        self._guessed: list[int] = []  # drafted tokens after the known ones; their masks are set
        self._ids: deque[int] = deque()  # tokens that are not handed out yet
        self._logprobs: deque[TokenLogprob] = deque()  # the log probabilities of these tokens
        self._pushed: _Pushed | None = None  # the next of these tokens; the answer already has it
        self._reason: FinishReason | None = None  # why no more tokens will follow
        self._error: GemletError | None = None  # or the error to raise after these tokens

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens of the prompt."""
        return self._prepared.ids.tolist()

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of the prompt."""
        return len(self._prepared.ids)

    @property
    def read_tokens(self) -> int:
        """The number of tokens of the prompt that the model has read."""
        found = [one.read_tokens for one in (self._scoring, self._request) if one is not None]
        self._read_tokens = max([self._read_tokens, *found])
        return self._read_tokens

    @property
    def has_tokens(self) -> bool:
        """Whether some have been taken from the engine, and not yet given out."""
        return bool(self._ids or self._pushed)

    @property
    def has_read_prompt(self) -> bool:
        """Whether the first token is there, or no token will come."""
        return bool(self._ids or self.answer.token_ids) or self.is_over or self.result is not None

    def begin(self, engine: Engine, news: _core.News, ahead: int) -> None:
        """Asks the engine for the text. The engine writes ``ahead`` tokens more than were taken."""
        self._begun, self._began = (engine, news, ahead), time.monotonic()
        self.is_over = False
        self._ask()

    def read(self) -> None:
        """Takes the tokens that the engine has for this text. Does not wait."""
        if self.is_over:
            return
        try:
            if self._request is None:
                self._ask()
            if self._request is not None:
                self._take(self._request)
            elif self.result is not None and self._scoring is None:
                self.is_over = True  # it ended before it was asked for
        except GemletError as error:
            self._error, self.is_over = error, True
        self._forget()

    def _ask(self) -> None:
        """Asks the engine for the text, once the prompt has been read as needed."""
        if self._begun is None or (self._scoring is None and self.result is not None):
            return
        if self._after is not None and not self._after.has_read_prompt:
            return
        engine, news, ahead = self._begun
        prepared, config = self._prepared, self.answer.config
        if config.prompt_logprobs is not None and self.answer.prompt_logprobs is None:
            self._begin_scoring(engine, news)
        if self._scoring is not None and not self._score(self._scoring, config.prompt_logprobs or 0):
            return
        timeout = prepared.timeout
        if timeout is not None:
            timeout = max(0.0, timeout - (time.monotonic() - self._began))
        self._request = engine.submit(
            prepared.ids,
            sampler=prepared.sampler,
            news=news,
            max_tokens=config.max_tokens,
            end_ids=sorted(self.answer.end_ids),
            adapter=prepared.adapter,
            timeout=timeout,
            most_unread=ahead,
            logprobs=config.logprobs,
            cache_salt=prepared.cache_salt,
            priority=prepared.priority,
            masked=self._masks is not None,
            media=prepared.media,
        )
        self._next_mask([])

    def _begin_scoring(self, engine: Engine, news: _core.News) -> None:
        prepared = self._prepared
        known = None if self._after is None else self._after.answer.prompt_logprobs
        if known is not None and len(known) == len(prepared.ids):
            self.answer.prompt_logprobs = list(known)
            return
        self.answer.prompt_logprobs = [None]
        if len(prepared.ids) > 1:
            self._scoring = engine.submit(
                prepared.ids[:-1],
                wanted="logits",
                news=news,
                adapter=prepared.adapter,
                timeout=prepared.timeout,
                media=prepared.media,
            )

    def _score(self, scoring: _Request, top: int) -> bool:
        """Takes the logits that are there. True if they were the last ones and the text is still wanted."""
        known, ids = self.answer.prompt_logprobs or [], self._prepared.ids
        _, reason, rows = scoring.take()
        if rows is not None:
            chosen = ids[len(known) : len(known) + len(rows)]
            known += map(_token_logprob, chosen.tolist(), _core.logprobs(rows, chosen, top))
        if reason is None:
            return False
        if len(known) < len(ids) or self.result is not None:
            self._reason, self.is_over = cast(FinishReason, reason), True
            return False
        return True

    def _take(self, request: _Request) -> None:
        ids, reason, _ = request.take()
        self._ids.extend(ids)
        if self.answer.logprobs is not None:
            self._logprobs.extend(map(_token_logprob, ids, request.logprobs))
        if reason is not None:
            self._reason, self.is_over = self._reason or cast(FinishReason, reason), True
        if ids:
            self._next_mask(ids)
        self._masks_ahead(request)

    def _next_mask(self, ids: Sequence[int]) -> None:
        """Says which tokens may follow ``ids``. The engine computes the logits meanwhile."""
        masks, request = self._masks, self._request
        if masks is None or request is None or masks.is_complete:
            return
        if self._error is not None or self.result is not None:
            return
        try:
            masks.push(ids)
            mask = masks.next()
            self._guessed = []
            if masks.is_complete:  # the end token need not be waited for
                self._reason = "stop"
                request.cancel()
            elif not self.is_over:
                request.set_mask(masks.count, mask)
        except GemletError as error:
            self._error = error
            request.cancel()

    def _masks_ahead(self, request: _Request) -> None:
        """Says which tokens may follow those that the engine guesses, so that it chooses several."""
        masks = self._masks
        if masks is None or masks.is_complete or self.is_over or self.result is not None:
            return
        position, guessed = request.guessed
        if position != masks.count or not guessed or guessed == self._guessed:
            return
        self._guessed = guessed
        for count, mask in enumerate(masks.ahead(guessed), 1):
            request.set_mask(position + count, mask, guessed[:count])

    def next_chunk(self, *, joined: bool = False) -> Chunk | None:
        """The next chunk, if there is one. The last one ends the text. ``joined``: one chunk of all tokens
        that are there and belong to the same kind of text."""
        if self.result is not None:
            return None
        if self._ids or self._pushed is not None:
            events, token_id, logprob, reason = self._push()
            ids, logprobs = [token_id], [logprob]
            kind = _only_kind(events) if joined and reason is None and self._ids else None
            if kind is not None:
                texts = [events[0]]
                while self._ids and reason is None:
                    pushed = self._push()
                    if _only_kind(pushed[0]) is not kind:
                        self._pushed = pushed
                        break
                    texts.append(pushed[0][0])
                    ids.append(pushed[1])
                    logprobs.append(pushed[2])
                    reason = pushed[3]
                events = [kind("".join([event.text for event in texts]))]  # type: ignore[union-attr]
            if reason is None:
                return self._chunk(events, ids, None, logprobs)
            return self.end(reason, events, ids, logprobs)
        if self._error is not None:
            raise self._error
        if self._reason is None:
            return None
        self.answer.ended = self._reason == "stop"
        return self.end(self._reason)

    def _push(self) -> _Pushed:
        """Adds the next token to the answer: gives the text that it makes certain, and the reason if it is
        the last."""
        if self._pushed is not None:
            pushed, self._pushed = self._pushed, None
            return pushed
        token_id = self._ids.popleft()
        logprob = self._logprobs.popleft() if self._logprobs else None
        events, reason = self.answer.push(token_id, logprob)
        if reason is None and self.prompt_tokens + len(self.answer.token_ids) > self._context_length:
            reason = "context"
        if reason == "length" and not self._ids and self._is_complete:
            self.answer.ended, reason = True, "stop"
        return events, token_id, logprob, reason

    def end(
        self,
        reason: FinishReason,
        events: Sequence[ReplyEvent] = (),
        token_ids: Sequence[int] = (),
        logprobs: Sequence[TokenLogprob | None] = (),
    ) -> Chunk:
        """Ends the text: its last chunk is ``events`` (already recorded) and what was held back."""
        if self._pushed is not None:
            begun, token_id, logprob, _ = self._push()
            events, token_ids, logprobs = [*begun, *events], [token_id, *token_ids], [logprob, *logprobs]
        timing = Timing()
        if self._request is not None:
            times = self._request.times
            _, timing.prefill_seconds, timing.decode_seconds, timing.decode_steps, timing.decode_tokens = (
                times
            )
            timing.drafted_tokens, timing.accepted_tokens = self._request.guesses
            timing.cached_tokens = self._request.cached_tokens
        if self._scoring is not None:
            timing.prefill_seconds += self._scoring.times[1]
            timing.cached_tokens = self._scoring.cached_tokens
        held_back, self.result = self.answer.end(reason, timing)
        self.cancel()
        self._forget()
        return self._chunk([*events, *held_back], token_ids, self.result.finish_reason, logprobs)

    @property
    def _is_complete(self) -> bool:
        return self._masks is not None and self._masks.is_complete

    def _forget(self) -> None:
        """Releases the requests, and with them the adapter, once both sides have ended the text."""
        if self.result is not None and self.is_over:
            self._read_tokens = self.read_tokens
            self._scoring = self._request = self._after = None
            self._prepared = replace(self._prepared, adapter=None, media=())

    def cancel(self) -> None:
        """The engine may stop. Does not wait."""
        for request in (self._scoring, self._request):
            if request is not None:
                request.cancel()

    def _chunk(
        self,
        events: list[ReplyEvent],
        token_ids: Sequence[int],
        reason: FinishReason | None,
        logprobs: Sequence[TokenLogprob | None],
    ) -> Chunk:
        known = None if self.answer.logprobs is None else [one for one in logprobs if one is not None]
        if len(events) == 1 and type(events[0]) is Content:  # the case of most tokens
            return Chunk(events[0].text, list(token_ids), reason, events, self.index, known)
        text = "".join(event.text for event in events if isinstance(event, Content))
        pieces = [event for event in events if isinstance(event, ToolCallPiece)]
        whole: list[ReplyEvent] = [event for event in events if not isinstance(event, ToolCallPiece)]
        return Chunk(text, list(token_ids), reason, whole, self.index, known, pieces)


# A token of the answer: the text that it made certain, its id, its log probability, and why it is the last
# one.
_Pushed = tuple[list[ReplyEvent], int, TokenLogprob | None, FinishReason | None]


def _only_kind(events: list[ReplyEvent]) -> type[Content | Reasoning] | None:
    """The kind of text in the events, if they have only one kind."""
    kind = type(events[0]) if len(events) == 1 else None
    return kind if kind is Content or kind is Reasoning else None


def _token_logprob(token_id: int, found: tuple[float, list[tuple[int, float]]]) -> TokenLogprob:
    return TokenLogprob(token_id, found[0], tuple(found[1]))
